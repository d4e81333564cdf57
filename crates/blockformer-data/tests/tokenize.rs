//! Text files to Megatron datasets.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use blockformer_data::{
    DataError, Documents, InMemoryCorpus, MegatronCorpus, TokenCorpus, TokenType, TokenizeConfig, TokenizeProgress,
    Tokenizer, TokenizerTraining, character_level, tokenize_files,
};
use tempfile::TempDir;

/// 300 documents of very different lengths in three files, some of them empty.
fn texts() -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let line =
        |n: usize| serde_json::json!({"text": "the cat sat on the mat. ".repeat(n * n % 37), "n": n}).to_string();
    let jsonl = |from: usize, to: usize| (from..to).map(|n| line(n) + "\n").collect::<String>();
    let paths = ["a.jsonl", "b.txt", "c.jsonl"].map(|name| folder.path().join(name)).to_vec();
    std::fs::write(&paths[0], jsonl(0, 150) + "\n").unwrap();
    std::fs::write(&paths[1], "a whole file\nis one document").unwrap();
    std::fs::write(&paths[2], jsonl(150, 299)).unwrap();
    (folder, paths)
}

fn tokenizer() -> Tokenizer {
    TokenizerTraining::new(300).train_byte_level_bpe(["the cat sat on the mat"].into_iter()).unwrap()
}

fn run(paths: &[PathBuf], name: &Path, config: &TokenizeConfig) -> Result<TokenizeProgress, DataError> {
    tokenize_files(paths, &tokenizer(), name, config, |_| ControlFlow::Continue(()))
}

/// All files of a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

fn with_threads<R: Send>(n: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(work)
}

#[test]
fn the_dataset_is_the_corpus_tokenized_in_memory() {
    let (_texts, paths) = texts();
    let out = tempfile::tempdir().unwrap();
    let name = out.path().join("corpus");
    let mut last = TokenizeProgress::default();
    let summary = tokenize_files(&paths, &tokenizer(), &name, &TokenizeConfig::default(), |progress| {
        assert!(progress.n_bytes >= last.n_bytes && progress.n_tokens >= last.n_tokens);
        last = *progress;
        ControlFlow::Continue(())
    })
    .unwrap();
    let mut documents = Documents::open(&paths).unwrap();
    let expected = InMemoryCorpus::tokenize_stream(documents.by_ref(), &tokenizer()).unwrap();
    let corpus = MegatronCorpus::open(&name).unwrap();
    assert_eq!(corpus.n_documents(), expected.n_documents());
    for index in 0..expected.n_documents() {
        assert_eq!(corpus.document(index), expected.document(index));
    }
    assert_eq!(corpus.token_type(), TokenType::U16);
    assert_eq!(summary.n_bytes, paths.iter().map(|path| std::fs::metadata(path).unwrap().len()).sum::<u64>());
    assert_eq!(summary.n_bytes, summary.total_bytes);
    assert_eq!((summary.n_documents, summary.n_empty), (expected.n_documents(), documents.n_empty()));
    assert!(summary.n_empty > 5);
    assert_eq!(summary.n_tokens, expected.n_tokens() as u64);
    let card = corpus.card().unwrap();
    assert_eq!(card.tokenizer, tokenizer().digest().unwrap());
    assert_eq!(card.vocab_size, tokenizer().max_token_id().unwrap() as usize + 1);
    assert_eq!((card.n_documents, card.n_tokens), (summary.n_documents, summary.n_tokens));
}

#[test]
fn the_files_do_not_depend_on_the_number_of_threads() {
    let (_texts, paths) = texts();
    let one = tempfile::tempdir().unwrap();
    run(&paths, &one.path().join("corpus"), &TokenizeConfig::default()).unwrap();
    for n_threads in [1, 2, 5] {
        let other = tempfile::tempdir().unwrap();
        with_threads(n_threads, || run(&paths, &other.path().join("corpus"), &TokenizeConfig::default())).unwrap();
        assert_eq!(files(one.path()), files(other.path()), "{n_threads} threads");
    }
}

#[test]
fn an_end_of_text_is_written_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, "{\"body\": \"cat\"}\n{\"body\": \"sat\"}\n").unwrap();
    let name = folder.path().join("corpus");
    let config = TokenizeConfig { text_field: "body".into(), append_eos: true, ..TokenizeConfig::default() };
    run(&[path], &name, &config).unwrap();
    let corpus = MegatronCorpus::open(&name).unwrap();
    let cat = [tokenizer().encode("cat").unwrap(), vec![tokenizer().eos_token_id().unwrap()]].concat();
    assert_eq!(*corpus.document(0), cat);
    assert!(corpus.card().unwrap().ends_with_eos);
}

#[test]
fn a_dataset_is_replaced_on_demand_only() {
    let (_texts, paths) = texts();
    let out = tempfile::tempdir().unwrap();
    let name = out.path().join("corpus");
    run(&paths, &name, &TokenizeConfig::default()).unwrap();
    let before = files(out.path());
    let error = run(&paths[1..2], &name, &TokenizeConfig::default()).unwrap_err();
    assert!(error.to_string().ends_with("corpus.idx is there already"), "{error}");
    assert_eq!(files(out.path()), before);
    let config = TokenizeConfig { overwrite: true, ..TokenizeConfig::default() };
    run(&paths[1..2], &name, &config).unwrap();
    assert_eq!(MegatronCorpus::open(&name).unwrap().n_documents(), 1);
    assert_eq!(files(out.path()).len(), 3);
}

/// The message of a run that must fail and leave nothing behind.
fn refused(files_in: &[(&str, &[u8])], tokenizer: &Tokenizer) -> String {
    let (texts, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let paths: Vec<PathBuf> = files_in.iter().map(|(name, _)| texts.path().join(name)).collect();
    for (path, (_, contents)) in paths.iter().zip(files_in) {
        std::fs::write(path, contents).unwrap();
    }
    let name = out.path().join("corpus");
    let result = tokenize_files(&paths, tokenizer, &name, &TokenizeConfig::default(), |_| ControlFlow::Continue(()));
    assert!(files(out.path()).is_empty(), "{:?}", files(out.path()).keys());
    result.unwrap_err().to_string().replace(&format!("{}/", texts.path().display()), "")
}

#[test]
fn the_first_bad_document_is_the_error_and_nothing_is_left_behind() {
    let good = "{\"text\": \"cat\"}\n".repeat(500);
    let spoilt = |line: &[u8]| [good.as_bytes(), line, b"\n", good.as_bytes(), b"also bad"].concat();
    let tokenizer = tokenizer();
    let message = |contents: &[u8]| refused(&[("a.jsonl", contents)], &tokenizer);
    assert_eq!(message(&spoilt(b"{\"title\": \"x\"}")), "a.jsonl line 501: missing field \"text\"");
    let object = "expected a json object with a string \"text\" field";
    assert_eq!(message(&spoilt(b"{\"text\": 3}")), format!("a.jsonl line 501: {object}"));
    assert_eq!(message(&spoilt(b"\xFF")), format!("a.jsonl is not valid utf-8 at byte {}", good.len()));
    assert_eq!(refused(&[("a.txt", b"caf\xC3")], &tokenizer), "a.txt is not valid utf-8 at byte 3");
    let letters = character_level("cat").unwrap();
    let error = refused(&[("a.txt", b"cat"), ("b.txt", b"cut")], &letters);
    assert_eq!(error, "character 'u' at byte 1 is not in the tokenizer's vocabulary");
}

#[test]
fn texts_without_a_document_are_an_error() {
    let error = refused(&[("a.txt", b" \n"), ("b.jsonl", b"\n\n{\"text\": \"\"}")], &tokenizer());
    assert!(error.contains("2 files read, 2 empty documents skipped"), "{error}");
}

#[test]
fn a_caller_who_has_enough_gets_no_files() {
    let (_texts, paths) = texts();
    let out = tempfile::tempdir().unwrap();
    let enough = |progress: &TokenizeProgress| match progress.n_documents {
        0..20 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let result = tokenize_files(&paths, &tokenizer(), &out.path().join("c"), &TokenizeConfig::default(), enough);
    assert!(matches!(result, Err(DataError::Cancelled)));
    assert!(files(out.path()).is_empty());
}

#[test]
fn an_end_of_text_that_the_tokenizer_does_not_have_is_refused() {
    let (_texts, paths) = texts();
    let training = TokenizerTraining::new(300).with_special_tokens(["<other>"]);
    let tokenizer = training.train_byte_level_bpe(["text"].into_iter()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let config = TokenizeConfig { append_eos: true, ..TokenizeConfig::default() };
    let go_on = |_: &TokenizeProgress| ControlFlow::Continue(());
    let error = tokenize_files(&paths, &tokenizer, &out.path().join("c"), &config, go_on).unwrap_err();
    assert_eq!(error.to_string(), "the tokenizer has no end-of-text token");
    assert!(files(out.path()).is_empty());
}
