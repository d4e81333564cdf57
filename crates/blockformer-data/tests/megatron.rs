//! Megatron datasets: bytes spelled out by hand, round trips, and files that do not fit together.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use blockformer_data::{
    DataError, InMemoryCorpus, MegatronCorpus, MegatronWriter, PackedDataset, PackingConfig, TokenCorpus, TokenType,
};
use proptest::prelude::*;
use tempfile::TempDir;

/// The parts of an index, to be spoilt one by one.
#[derive(Clone)]
struct Parts {
    magic: Vec<u8>,
    version: u64,
    dtype: u8,
    n_sequences: u64,
    n_doc_idx: u64,
    sizes: Vec<i32>,
    pointers: Vec<i64>,
    doc_idx: Vec<i64>,
    tokens: Vec<u8>,
}

impl Parts {
    /// Two sequences of two-byte tokens, `[1, 2, 3]` and `[4, 65535]`, a document each.
    fn good() -> Self {
        Self {
            magic: b"MMIDIDX\0\0".to_vec(),
            version: 1,
            dtype: 8,
            n_sequences: 2,
            n_doc_idx: 3,
            sizes: vec![3, 2],
            pointers: vec![0, 6],
            doc_idx: vec![0, 1, 2],
            tokens: vec![1, 0, 2, 0, 3, 0, 4, 0, 255, 255],
        }
    }

    fn index(&self) -> Vec<u8> {
        let mut bytes = self.magic.clone();
        bytes.extend(self.version.to_le_bytes());
        bytes.push(self.dtype);
        bytes.extend(self.n_sequences.to_le_bytes());
        bytes.extend(self.n_doc_idx.to_le_bytes());
        bytes.extend(self.sizes.iter().flat_map(|size| size.to_le_bytes()));
        bytes.extend(self.pointers.iter().flat_map(|pointer| pointer.to_le_bytes()));
        bytes.extend(self.doc_idx.iter().flat_map(|start| start.to_le_bytes()));
        bytes
    }

    fn open(&self) -> Result<MegatronCorpus, DataError> {
        open(&self.index(), &self.tokens)
    }
}

fn open(index: &[u8], tokens: &[u8]) -> Result<MegatronCorpus, DataError> {
    let (_folder, name) = dataset();
    std::fs::write(name.with_extension("idx"), index).unwrap();
    std::fs::write(name.with_extension("bin"), tokens).unwrap();
    MegatronCorpus::open(&name)
}

fn dataset() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("tokens");
    (folder, name)
}

fn documents(corpus: &impl TokenCorpus) -> Vec<Vec<u32>> {
    (0..corpus.n_documents()).map(|index| corpus.document(index).into_owned()).collect()
}

/// The error, the file's folder left out of its message.
fn message(result: Result<MegatronCorpus, DataError>) -> String {
    let message = result.unwrap_err().to_string();
    let file = message.find("tokens.").expect("the message names the file");
    message[file..].to_owned()
}

#[test]
fn a_dataset_spelled_out_by_hand_is_read() {
    let corpus = Parts::good().open().unwrap();
    assert_eq!(documents(&corpus), [vec![1, 2, 3], vec![4, 65535]]);
    assert_eq!(corpus.n_tokens(), 5);
    assert_eq!(corpus.token_type(), TokenType::U16);
    assert_eq!(*corpus.document_range(0, 1..3), [2, 3]);
}

#[test]
fn the_writer_writes_just_these_bytes() {
    let (_folder, name) = dataset();
    let mut writer = MegatronWriter::create(&name, TokenType::U16).unwrap();
    writer.push(&[1, 2, 3]).unwrap();
    writer.push(&[4, 65535]).unwrap();
    writer.finish().unwrap();
    assert_eq!(std::fs::read(name.with_extension("idx")).unwrap(), Parts::good().index());
    assert_eq!(std::fs::read(name.with_extension("bin")).unwrap(), Parts::good().tokens);
}

/// SHA-256 of the `.idx` and `.bin` that megatron-core 0.16.1 (`IndexedDatasetBuilder`, PyPI) writes for the documents
/// `[0, 1, 2]`, `[]`, `[127, 5, 9, 4]` and `[77]`.
const BY_MEGATRON_CORE: [(TokenType, &str, &str); 6] = [
    (
        TokenType::U8,
        "adddd2d68dd963460b656a1ca57cc3dc7231cfad22110c3c6c7e96ea18bd42ad",
        "6b40d07ed0d2d192dd17f046d1eb68db9365dde0687e7a191a17bc81cd2beee8",
    ),
    (
        TokenType::I8,
        "5c3b93b6e6e7de58c2ac412405b18446c8b5c8684cb6f2d874b3e036542548ef",
        "6b40d07ed0d2d192dd17f046d1eb68db9365dde0687e7a191a17bc81cd2beee8",
    ),
    (
        TokenType::I16,
        "a62002be007e2e007f9956b59eccabe23d3f67d0f840460c8c98b2a8faa2f2eb",
        "f79608b9496166eae0247b44d1dbd974eaf5fb6403b829fe0a83e2b2e43e449c",
    ),
    (
        TokenType::I32,
        "5804840c0a999bfa5d8881b55d62a742253130e6b03e0c8c1357bcfd73d0ef10",
        "0f090b3095cc2edc3a3f102bad44a3da74e9577bfe6e23666b3cf8199454d96f",
    ),
    (
        TokenType::I64,
        "0601dab48d5fc43c7d74d365c56afb33a062dcdb41338b65792ed6eeec5564d9",
        "55160570c0010665cba413e7cfcd59b543e5fe6985080cab58ddf7ee332f895d",
    ),
    (
        TokenType::U16,
        "5dfe6c63c03b8cf3e2b905d597c52ffc8aa358a41e4efdaec7b5334508e3d57d",
        "f79608b9496166eae0247b44d1dbd974eaf5fb6403b829fe0a83e2b2e43e449c",
    ),
];

#[test]
fn the_writer_writes_what_megatron_core_does() {
    use sha2::{Digest, Sha256};
    let sha256 = |path: PathBuf| format!("{:x}", Sha256::digest(std::fs::read(path).unwrap()));
    for (dtype, index, tokens) in BY_MEGATRON_CORE {
        let (_folder, name) = dataset();
        let mut writer = MegatronWriter::create(&name, dtype).unwrap();
        for document in [&[0, 1, 2][..], &[], &[127, 5, 9, 4], &[77]] {
            writer.push(document).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(sha256(name.with_extension("idx")), index, "{dtype:?}");
        assert_eq!(sha256(name.with_extension("bin")), tokens, "{dtype:?}");
    }
}

/// The `.bin` files that megatron-core 0.16.1 wrote for the documents above and `[3, 4, 5]`, which it was given as two
/// sequences of 2 and 1 tokens; their type codes; and the pointers of their indices. The rest of the indices is the
/// same for all.
const TOKENS_BY_MEGATRON_CORE: [(u8, [i64; 6], &str); 6] = [
    (1, [0, 3, 3, 7, 8, 10], "0001027f0509044d030405"),
    (2, [0, 3, 3, 7, 8, 10], "0001027f0509044d030405"),
    (3, [0, 6, 6, 14, 16, 20], "0000010002007f000500090004004d00030004000500"),
    (
        4,
        [0, 12, 12, 28, 32, 40],
        "0000000001000000020000007f0000000500000009000000040000004d000000030000000400000005000000",
    ),
    (
        5,
        [0, 24, 24, 56, 64, 80],
        "0000000000000000010000000000000002000000000000007f000000000000000500000000000000090000000000000004000000000000004d00000000000000030000000000000004000000000000000500000000000000",
    ),
    (8, [0, 6, 6, 14, 16, 20], "0000010002007f000500090004004d00030004000500"),
];

#[test]
fn what_megatron_core_writes_is_read() {
    for (dtype, pointers, tokens) in TOKENS_BY_MEGATRON_CORE {
        let byte = |i: usize| u8::from_str_radix(&tokens[i..i + 2], 16).unwrap();
        let parts = Parts {
            dtype,
            n_sequences: 6,
            n_doc_idx: 6,
            sizes: vec![3, 0, 4, 1, 2, 1],
            pointers: pointers.to_vec(),
            doc_idx: vec![0, 1, 2, 3, 4, 6],
            tokens: (0..tokens.len()).step_by(2).map(byte).collect(),
            ..Parts::good()
        };
        let expected = [vec![0, 1, 2], vec![], vec![127, 5, 9, 4], vec![77], vec![3, 4, 5]];
        assert_eq!(documents(&parts.open().unwrap()), expected, "type {dtype}");
    }
}

#[test]
fn documents_of_several_sequences_are_joined() {
    let parts = Parts { n_doc_idx: 2, doc_idx: vec![0, 2], ..Parts::good() };
    assert_eq!(documents(&parts.open().unwrap()), [[1, 2, 3, 4, 65535]]);
}

#[test]
fn without_document_starts_each_sequence_is_a_document() {
    for doc_idx in [vec![], vec![0]] {
        let parts = Parts { n_doc_idx: doc_idx.len() as u64, doc_idx, ..Parts::good() };
        assert_eq!(documents(&parts.open().unwrap()), [vec![1, 2, 3], vec![4, 65535]]);
    }
}

#[test]
fn four_byte_tokens_are_not_copied() {
    let (_folder, name) = dataset();
    let mut writer = MegatronWriter::create(&name, TokenType::I32).unwrap();
    writer.push(&[1]).unwrap();
    writer.push(&[100_000, 2]).unwrap();
    writer.finish().unwrap();
    let corpus = MegatronCorpus::open(&name).unwrap();
    let document = corpus.document(1);
    assert_eq!(*document, [100_000, 2]);
    assert!(cfg!(target_endian = "big") || matches!(document, Cow::Borrowed(_)));
}

#[test]
fn an_end_of_text_on_disk_is_left_out_on_demand() {
    let corpus = Parts::good().open().unwrap().without_trailing(65535);
    assert_eq!(documents(&corpus), [vec![1, 2, 3], vec![4]]);
    assert_eq!(corpus.n_tokens(), 4);
}

#[test]
fn an_empty_dataset_has_no_documents() {
    let (_folder, name) = dataset();
    MegatronWriter::create(&name, TokenType::U16).unwrap().finish().unwrap();
    let corpus = MegatronCorpus::open(&name).unwrap();
    assert_eq!((corpus.n_documents(), corpus.n_tokens()), (0, 0));
}

#[test]
fn a_writer_that_is_not_finished_leaves_no_files() {
    let (folder, name) = dataset();
    let mut writer = MegatronWriter::create(&name, TokenType::U16).unwrap();
    writer.push(&[1, 2, 3]).unwrap();
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_token_that_does_not_fit_is_refused_and_its_document_left_out() {
    let (_folder, name) = dataset();
    let mut writer = MegatronWriter::create(&name, TokenType::U16).unwrap();
    let error = writer.push(&[1, 65536]).unwrap_err();
    assert!(error.to_string().ends_with("tokens.bin: expected tokens up to 65535, got 65536"), "{error}");
    writer.push(&[7]).unwrap();
    writer.finish().unwrap();
    assert_eq!(documents(&MegatronCorpus::open(&name).unwrap()), [[7]]);
}

#[test]
fn files_of_another_kind_are_refused() {
    let wrong = Parts { magic: b"MMIDIDX\0\x01".to_vec(), ..Parts::good() };
    assert_eq!(
        message(wrong.open()),
        r#"tokens.idx is not a megatron index: expected it to begin with "MMIDIDX\\x00\\x00", got "MMIDIDX\\x00\\x01""#
    );
    assert!(matches!(open(b"", b""), Err(DataError::NotAnIndex { .. })));
    assert!(matches!(open(b"MMID", b""), Err(DataError::NotAnIndex { .. })));
}

#[test]
fn other_versions_and_token_types_are_refused() {
    assert_eq!(message(Parts { version: 2, ..Parts::good() }.open()), "tokens.idx: expected index version 1, got 2");
    for dtype in [0, 6, 7, 9, 255] {
        let error = Parts { dtype, ..Parts::good() }.open().unwrap_err();
        assert!(matches!(error, DataError::TokenType { got, .. } if got == dtype), "{error}");
    }
}

#[test]
fn an_index_cut_short_anywhere_is_refused() {
    let whole = Parts::good();
    let index = whole.index();
    for n_bytes in 0..index.len() {
        assert!(open(&index[..n_bytes], &whole.tokens).is_err(), "{n_bytes} of {} bytes", index.len());
    }
    let longer = [index.as_slice(), &[0]].concat();
    assert_eq!(message(open(&longer, &whole.tokens)), "tokens.idx: expected 82 bytes, got 83");
}

#[test]
fn counts_that_no_file_could_hold_are_refused() {
    for count in [u64::MAX, u64::MAX / 8, 1 << 61, 3] {
        let n_sequences = Parts { n_sequences: count, ..Parts::good() };
        assert!(matches!(n_sequences.open(), Err(DataError::FileLength { .. })));
        let n_doc_idx = Parts { n_doc_idx: count + u64::from(count == 3), ..Parts::good() };
        assert!(matches!(n_doc_idx.open(), Err(DataError::FileLength { .. })) || count == u64::MAX);
    }
}

#[test]
fn a_token_file_of_another_length_is_refused() {
    let whole = Parts::good();
    for n_bytes in [0, 1, 9, 11, 20] {
        let mut tokens = whole.tokens.clone();
        tokens.resize(n_bytes, 0);
        assert_eq!(message(open(&whole.index(), &tokens)), format!("tokens.bin: expected 10 bytes, got {n_bytes}"));
    }
}

#[test]
fn sizes_and_pointers_that_do_not_fit_are_refused() {
    for (parts, expected) in [
        (Parts { sizes: vec![3, -2], ..Parts::good() }, "tokens.idx: expected sizes[1] to be 0 or more, got -2"),
        (Parts { sizes: vec![2, 3], ..Parts::good() }, "tokens.idx: expected pointers[1] to be 4, got 6"),
        (Parts { sizes: vec![3, i32::MAX], ..Parts::good() }, "tokens.bin: expected 4294967300 bytes, got 10"),
        (Parts { pointers: vec![2, 6], ..Parts::good() }, "tokens.idx: expected pointers[0] to be 0, got 2"),
        (Parts { pointers: vec![0, -6], ..Parts::good() }, "tokens.idx: expected pointers[1] to be 6, got -6"),
        (
            Parts { pointers: vec![0, i64::MAX], ..Parts::good() },
            "tokens.idx: expected pointers[1] to be 6, got 9223372036854775807",
        ),
    ] {
        assert_eq!(message(parts.open()), expected);
    }
}

#[test]
fn document_starts_that_do_not_fit_are_refused() {
    for (doc_idx, expected) in [
        (vec![1, 1, 2], "tokens.idx: expected doc_idx[0] to be 0, got 1"),
        (vec![0, 3, 2], "tokens.idx: expected doc_idx[1] to be from 0 to 2, got 3"),
        (vec![0, -1, 2], "tokens.idx: expected doc_idx[1] to be from 0 to 2, got -1"),
        (vec![0, 1, 1], "tokens.idx: expected doc_idx[2] to be 2, got 1"),
        (vec![0, 1, 0, 2], "tokens.idx: expected doc_idx[2] to be from 1 to 2, got 0"),
        (vec![5], "tokens.idx: expected doc_idx[0] to be 0, got 5"),
    ] {
        let parts = Parts { n_doc_idx: doc_idx.len() as u64, doc_idx, ..Parts::good() };
        assert_eq!(message(parts.open()), expected);
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = MegatronCorpus::open(Path::new("no/such/dataset")).unwrap_err();
    assert_eq!(error.to_string(), "cannot map no/such/dataset.idx");
    let (_folder, name) = dataset();
    std::fs::write(name.with_extension("idx"), Parts::good().index()).unwrap();
    assert!(MegatronCorpus::open(&name).unwrap_err().to_string().ends_with("tokens.bin"));
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        corpus in prop::collection::vec(prop::collection::vec(0_u32..128, 0..20), 0..10),
        dtype in prop::sample::select(vec![
            TokenType::U8, TokenType::I8, TokenType::I16, TokenType::I32, TokenType::I64, TokenType::U16,
        ]),
    ) {
        let (_folder, name) = dataset();
        let mut writer = MegatronWriter::create(&name, dtype).unwrap();
        for document in &corpus {
            writer.push(document).unwrap();
        }
        writer.finish().unwrap();
        let read = MegatronCorpus::open(&name).unwrap();
        prop_assert_eq!(documents(&read), corpus.clone());

        let config = PackingConfig::new(4, 8, 200);
        let in_memory = PackedDataset::new(InMemoryCorpus::from_documents(&corpus), config);
        if let Ok(in_memory) = in_memory {
            let on_disk = PackedDataset::new(read, config).unwrap();
            for index in 0..in_memory.len() {
                prop_assert_eq!(on_disk.sample(index), in_memory.sample(index));
            }
        }
    }

    #[test]
    fn no_index_makes_it_panic(at in 9_usize..82, byte in any::<u8>()) {
        let parts = Parts::good();
        let mut index = parts.index();
        index[at] = byte;
        if let Ok(corpus) = open(&index, &parts.tokens) {
            let _ = documents(&corpus);
        }
    }
}
