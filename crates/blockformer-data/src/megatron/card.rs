//! What is known of a dataset besides its tokens: `NAME.blockformer.json`, which other readers do not look at.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};

/// Where a dataset's tokens are from. [`tokenize_files`](crate::tokenize_files) writes one; datasets of other programs
/// have none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetCard {
    /// The [digest](crate::Tokenizer::digest) of the tokenizer.
    pub tokenizer: String,
    /// Ids are below this.
    pub vocab_size: usize,
    /// Whether an end of text stands behind each document.
    pub ends_with_eos: bool,
    /// Documents.
    pub n_documents: usize,
    /// Tokens, ends of text included.
    pub n_tokens: u64,
}

impl DatasetCard {
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(json) => serde_json::from_slice(&json)
                .map(Some)
                .map_err(|source| DataError::DatasetCard { path: path.to_path_buf(), source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DataError::io("read", path)(error)),
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings, numbers and flags can be written as json")
    }
}
