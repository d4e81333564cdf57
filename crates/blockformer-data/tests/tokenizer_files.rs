//! Tokenizer files that are missing or wrong.

use std::error::Error;

use blockformer_data::{DataError, Tokenizer, character_level};

#[test]
fn a_missing_file_is_named() {
    let error = Tokenizer::from_file("no/such/tokenizer.json").unwrap_err();
    assert_eq!(error.to_string(), "cannot read no/such/tokenizer.json");
    assert!(error.source().is_some());
}

#[test]
fn files_that_are_no_tokenizer_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let whole = character_level("abc").unwrap().to_json().unwrap();
    let cut = &whole.as_bytes()[..whole.len() / 2];
    for contents in [b"".as_slice(), b"{}", b"[1, 2]", b"\xFF\xFE", b"{\"model\": {\"type\": \"None\"}}", cut] {
        std::fs::write(&path, contents).unwrap();
        let error = Tokenizer::from_file(&path).unwrap_err();
        assert!(matches!(error, DataError::TokenizerFile { .. }), "{error}");
        assert!(error.to_string().contains("tokenizer.json"));
        assert!(matches!(Tokenizer::from_bytes(contents), Err(DataError::TokenizerBytes { .. })));
    }
}

#[test]
fn a_tokenizer_cut_short_anywhere_is_refused() {
    let whole = character_level("ab").unwrap().to_json().unwrap();
    for n_bytes in 0..whole.len() {
        assert!(Tokenizer::from_bytes(&whole.as_bytes()[..n_bytes]).is_err(), "{n_bytes} of {} bytes", whole.len());
    }
}

#[test]
fn a_file_that_the_tokenizers_crate_panics_over_is_refused() {
    let mut file: serde_json::Value = serde_json::from_str(&character_level("ab").unwrap().to_json().unwrap()).unwrap();
    file["normalizer"] = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "not base64!"});
    let error = Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap_err();
    assert!(matches!(error, DataError::TokenizerBytes { .. }), "{error}");
}

#[test]
fn a_tokenizer_is_not_saved_where_there_is_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing").join("tokenizer.json");
    let error = character_level("abc").unwrap().save(&path).unwrap_err();
    assert!(matches!(error, DataError::Io { action: "write", .. }), "{error}");
}
