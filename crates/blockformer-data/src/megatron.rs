//! The token files of Megatron-LM and GPT-NeoX, which the Pile comes in as Pythia was trained on it.
//!
//! Two files have one name: `NAME.bin` holds the tokens of all sequences end to end, and `NAME.idx` says where they
//! are. All numbers are little-endian.
//!
//! ```text
//! NAME.idx   magic       9 bytes   "MMIDIDX\0\0"
//!            version     u64       1
//!            dtype       u8        1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16 (6 and 7, floats, hold no tokens)
//!            n_sequences u64
//!            n_doc_idx   u64       the number of documents, plus one
//!            sizes       i32 * n_sequences   tokens of each sequence
//!            pointers    i64 * n_sequences   the byte of NAME.bin at which each sequence starts
//!            doc_idx     i64 * n_doc_idx     the sequence at which each document starts, and at last n_sequences
//! ```
//!
//! Sequences must lie in the `.bin` file one after another without gaps, as every known writer leaves them. An index
//! whose `doc_idx` has fewer than two entries says nothing of documents: each sequence is one then.

mod card;
mod corpus;
mod dtype;
mod index;
mod mapped_file;
mod writer;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub use card::DatasetCard;
pub use corpus::MegatronCorpus;
pub use dtype::TokenType;
pub use writer::MegatronWriter;

const MAGIC: &[u8; 9] = b"MMIDIDX\x00\x00";
const VERSION: u64 = 1;

/// The files of a dataset.
#[derive(Debug)]
struct Paths {
    index: PathBuf,
    tokens: PathBuf,
    card: PathBuf,
}

impl Paths {
    /// Those of a dataset named without an ending, or with `.idx` or `.bin`.
    fn of(name: &Path) -> Self {
        let has_ending = name.extension().is_some_and(|ending| ending == "idx" || ending == "bin");
        let stem = if has_ending { name.with_extension("") } else { name.to_path_buf() };
        // Names have dots in them, so an ending is added, never replaced.
        let with_ending = |ending: &str| {
            let mut path = stem.clone().into_os_string();
            path.push(OsStr::new(ending));
            PathBuf::from(path)
        };
        Self { index: with_ending(".idx"), tokens: with_ending(".bin"), card: with_ending(".blockformer.json") }
    }
}

/// The index of the dataset called `name`, if there is one.
pub(crate) fn dataset_exists(name: &Path) -> Option<PathBuf> {
    Some(Paths::of(name).index).filter(|index| index.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_is_named_with_or_without_an_ending() {
        for name in ["pile_0.87_text", "pile_0.87_text.idx", "pile_0.87_text.bin"] {
            let paths = Paths::of(Path::new(name));
            assert_eq!(paths.index, Path::new("pile_0.87_text.idx"));
            assert_eq!(paths.tokens, Path::new("pile_0.87_text.bin"));
            assert_eq!(paths.card, Path::new("pile_0.87_text.blockformer.json"));
        }
    }
}
