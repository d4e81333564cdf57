//! Reading documents from files, good and bad.

use std::path::{Path, PathBuf};

use blockformer_data::{DataError, Documents, InMemoryCorpus, TokenCorpus, TokenizerTraining, read_documents};
use tempfile::TempDir;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, contents).unwrap();
    }
    folder
}

fn read(paths: &[&Path]) -> Result<Vec<String>, DataError> {
    read_documents(&paths.iter().map(|path| path.to_path_buf()).collect::<Vec<PathBuf>>())
}

/// The error of the one file in the folder, its folder left out of the message.
fn error_of(name: &str, contents: &[u8]) -> String {
    let folder = folder(&[(name, contents)]);
    let error = read(&[&folder.path().join(name)]).unwrap_err();
    error.to_string().replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn a_folder_is_its_text_and_jsonl_files_by_name() {
    let folder = folder(&[
        ("b.txt", b"second\nfile\n"),
        ("a.jsonl", b"{\"text\": \"one\"}\n{\"text\": \"two\"}"),
        ("c.md", b"not read"),
        ("deeper/a.txt", b"not read"),
        ("d.TXT", b"last"),
    ]);
    assert_eq!(read(&[folder.path()]).unwrap(), ["one", "two", "second\nfile\n", "last"]);
}

#[test]
fn files_come_in_the_order_given() {
    let folder = folder(&[("b.txt", b"b"), ("a.txt", b"a"), ("notes.md", b"any ending will do")]);
    let paths = ["b.txt", "notes.md", "a.txt"].map(|name| folder.path().join(name));
    assert_eq!(read_documents(&paths).unwrap(), ["b", "any ending will do", "a"]);
}

#[test]
fn blank_lines_other_fields_and_line_ends_of_either_kind_are_fine() {
    let contents =
        "\u{feff}{\"id\": 1, \"text\": \"a\\n\\u00e9\", \"meta\": {\"text\": 3}}\r\n\r\n  \n{\"text\": \"b\"}\r\n";
    let folder = folder(&[("a.jsonl", contents.as_bytes())]);
    assert_eq!(read(&[folder.path()]).unwrap(), ["a\né", "b"]);
}

#[test]
fn a_byte_order_mark_is_no_text() {
    let folder = folder(&[("a.txt", "\u{feff}text".as_bytes())]);
    assert_eq!(read(&[folder.path()]).unwrap(), ["text"]);
}

#[test]
fn empty_documents_are_skipped_and_counted() {
    let folder = folder(&[("a.jsonl", b"{\"text\": \"\"}\n{\"text\": \"x\"}\n{\"text\": \" \\n\"}"), ("b.txt", b"")]);
    let mut documents = Documents::open(&[folder.path().to_path_buf()]).unwrap();
    assert_eq!(documents.files().len(), 2);
    assert_eq!(documents.next().unwrap().unwrap(), "x");
    assert!(documents.next().is_none());
    assert_eq!((documents.n_documents(), documents.n_empty()), (1, 3));
}

#[test]
fn no_documents_at_all_is_an_error_once() {
    let folder = folder(&[("a.txt", b""), ("b.jsonl", b"\n\n")]);
    let mut documents = Documents::open(&[folder.path().to_path_buf()]).unwrap();
    let error = documents.next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::NoDocuments { n_files: 2, n_empty: 1, .. }), "{error}");
    assert!(documents.next().is_none());
    assert!(matches!(read(&[]), Err(DataError::NoDocuments { n_files: 0, .. })));
}

#[test]
fn text_that_is_not_utf8_is_located() {
    assert_eq!(error_of("a.txt", b"caf\xC3\xA9 \xFF"), "a.txt is not valid utf-8 at byte 6");
    assert_eq!(error_of("a.txt", b"caf\xC3"), "a.txt is not valid utf-8 at byte 3");
}

#[test]
fn jsonl_that_is_not_utf8_is_located_in_the_file() {
    assert_eq!(
        error_of("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xFF\"}"),
        "a.jsonl is not valid utf-8 at byte 24"
    );
}

#[test]
fn a_bad_line_is_named_by_its_number() {
    let expected = "expected a json object with a string \"text\" field";
    for (contents, message) in [
        ("{\"text\": \"a\"}\n\n{\"title\": \"b\"}\n", "a.jsonl line 3: missing field \"text\"".to_owned()),
        ("{\"text\": null}", "a.jsonl line 1: missing field \"text\"".to_owned()),
        ("{\"text\": \"a\"}\n{\"text\": 3}", format!("a.jsonl line 2: {expected}")),
        ("{\"text\": \"a\"\n", format!("a.jsonl line 1: {expected}")),
        ("{\"text\": \"a\"} {\"text\": \"b\"}", format!("a.jsonl line 1: {expected}")),
        ("{\"text\": \"a\", \"text\": \"b\"}", format!("a.jsonl line 1: {expected}")),
        ("\"just a string\"", format!("a.jsonl line 1: {expected}")),
        ("[\"a\"]", format!("a.jsonl line 1: {expected}")),
        ("{\"a\": {\"text\": \"b\"}}", "a.jsonl line 1: missing field \"text\"".to_owned()),
    ] {
        let error = error_of("a.jsonl", contents.as_bytes());
        assert_eq!(error, message, "{contents}");
    }
}

#[test]
fn the_field_with_the_text_may_have_another_name() {
    let folder = folder(&[("a.jsonl", b"{\"content\": \"a\", \"text\": 3}\n{\"text\": \"b\"}")]);
    let mut documents = Documents::open(&[folder.path().to_path_buf()]).unwrap().with_text_field("content");
    assert_eq!(documents.next().unwrap().unwrap(), "a");
    let error = documents.next().unwrap().unwrap_err().to_string();
    assert!(error.ends_with("a.jsonl line 2: missing field \"content\""), "{error}");
}

#[test]
fn documents_before_an_error_are_returned_and_none_after_it() {
    let folder = folder(&[("a.jsonl", b"{\"text\": \"a\"}\nbad\n{\"text\": \"b\"}")]);
    let mut documents = Documents::open(&[folder.path().to_path_buf()]).unwrap();
    assert_eq!(documents.next().unwrap().unwrap(), "a");
    assert!(documents.next().unwrap().is_err());
    assert!(documents.next().is_none());
}

#[test]
fn a_path_that_does_not_exist_is_named() {
    let error = read(&[Path::new("no/such/file.txt")]).unwrap_err();
    assert_eq!(error.to_string(), "cannot open no/such/file.txt");
}

#[test]
fn files_train_a_tokenizer_and_become_a_corpus() {
    let folder = folder(&[("a.txt", b"the cat, the hat, the mat"), ("b.jsonl", b"{\"text\": \"the rat\"}")]);
    let paths = [folder.path().to_path_buf()];
    let tokenizer = TokenizerTraining::new(262).train_byte_level_bpe_on_files(&paths).unwrap();
    assert!(tokenizer.token_to_id("Ġthe").is_some());
    let corpus = InMemoryCorpus::tokenize_stream(Documents::open(&paths).unwrap(), &tokenizer).unwrap();
    assert_eq!(corpus.n_documents(), 2);
    assert_eq!(tokenizer.decode(&corpus.document(1)).unwrap(), "the rat");
}

#[test]
fn an_error_in_a_file_ends_training_with_that_error() {
    let folder = folder(&[("a.txt", b"fine"), ("b.txt", b"\xFF")]);
    let training = TokenizerTraining::new(262);
    let error = training.train_byte_level_bpe_on_files(&[folder.path().to_path_buf()]).unwrap_err();
    assert!(matches!(error, DataError::InvalidUtf8 { byte_offset: 0, .. }), "{error}");
}
