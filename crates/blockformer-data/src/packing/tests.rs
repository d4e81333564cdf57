use super::*;
use crate::in_memory_corpus::InMemoryCorpus;
use proptest::prelude::*;

const EOS: u32 = 1000;
const PAD: u32 = 1001;

fn config(block_length: usize, max_length: usize) -> PackingConfig {
    PackingConfig { pad_token_id: PAD, ..PackingConfig::new(block_length, max_length, EOS) }
}

fn samples<C: TokenCorpus>(dataset: &PackedDataset<C>) -> Vec<Sample> {
    (0..dataset.len()).map(|index| dataset.sample(index)).collect()
}

#[test]
fn boundary_padding_fills_the_last_block_of_each_document() {
    let corpus = InMemoryCorpus::from_documents([vec![1, 2, 3, 4, 5], vec![6, 7, 8]]);
    let config = PackingConfig { random_pad_first_block: false, ..config(4, 12) };
    let dataset = PackedDataset::new(corpus, config).unwrap();
    assert_eq!(
        samples(&dataset),
        [Sample {
            ids: vec![1, 2, 3, 4, 5, EOS, PAD, PAD, 6, 7, 8, EOS],
            mask: [vec![true; 6], vec![false; 2], vec![true; 4]].concat(),
            prompt: Vec::new(),
        }]
    );
}

#[test]
fn without_paddings_documents_are_joined_by_their_ends() {
    let corpus = InMemoryCorpus::from_documents([vec![1, 2, 3], vec![], vec![4]]);
    let dataset = PackedDataset::new(corpus, PackingConfig::vanilla(3, EOS)).unwrap();
    let ids: Vec<Vec<u32>> = samples(&dataset).into_iter().map(|sample| sample.ids).collect();
    assert_eq!(ids, [[1, 2, 3], [EOS, EOS, 4]]);
    let statistics = dataset.statistics();
    assert_eq!(
        statistics,
        PackingStatistics {
            n_documents: 3,
            n_samples: 2,
            n_content_tokens: 7,
            n_padding_tokens: 0,
            n_dropped_tokens: 1,
        }
    );
}

#[test]
fn blocks_of_drawn_lengths_hold_the_same_text() {
    let documents: Vec<Vec<u32>> = (0..30).map(|i| (0..i % 7 + 3).map(|j| 10 * i + j).collect()).collect();
    let plain = PackingConfig { pad_token_id: PAD, ..PackingConfig::vanilla(50, EOS) };
    let drawn = PackingConfig { block_length: 6, block_lengths: BlockLengths::Uniform { shortest: 2 }, ..plain };
    let plain = PackedDataset::new(InMemoryCorpus::from_documents(documents.clone()), plain).unwrap();
    let other_seed = PackingConfig { seed: 1, ..drawn };
    let other_seed = PackedDataset::new(InMemoryCorpus::from_documents(documents.clone()), other_seed).unwrap();
    let drawn = PackedDataset::new(InMemoryCorpus::from_documents(documents), drawn).unwrap();
    assert_eq!(drawn.config().sample_len(), 13 * 6); // 50 tokens in blocks of 4 on average
    assert_eq!(drawn.len(), plain.len());
    for (drawn, plain) in samples(&drawn).iter().zip(samples(&plain)) {
        assert_eq!(drawn.ids.len(), 78);
        let content: Vec<u32> =
            drawn.ids.iter().zip(&drawn.mask).filter(|(_, real)| **real).map(|(id, _)| *id).collect();
        assert_eq!(content, plain.ids);
        for block in drawn.mask.chunks(6) {
            let n = block.iter().filter(|real| **real).count();
            assert!((2..=6).contains(&n) && block[..n].iter().all(|real| *real), "{block:?}");
        }
    }
    assert_ne!(drawn.sample(0).mask, drawn.sample(1).mask);
    assert_ne!(drawn.sample(0).mask, other_seed.sample(0).mask);
}

#[test]
fn drawn_lengths_that_cannot_be_are_refused() {
    let config = PackingConfig { block_lengths: BlockLengths::Uniform { shortest: 2 }, ..config(4, 12) };
    let message = |config: PackingConfig| config.validate().unwrap_err().to_string();
    assert!(message(config).starts_with("blocks of drawn lengths cannot go with random_pad_first_block"));
    let config = PackingConfig { random_pad_first_block: false, ..config };
    assert!(message(config).starts_with("blocks of drawn lengths cannot go with pad_to_block_boundary"));
    let config = PackingConfig { pad_to_block_boundary: false, ..config };
    assert!(config.validate().is_ok());
    for shortest in [0, 5, usize::MAX, usize::MAX - 3] {
        let config = PackingConfig { block_lengths: BlockLengths::Uniform { shortest }, ..config };
        let expected = "the shortest block is to have {shortest} tokens, expected 1 to block_length (4)";
        assert!(message(config).starts_with(&expected.replace("{shortest}", &shortest.to_string())));
    }
}

#[test]
fn random_padding_alone_goes_before_each_document() {
    let corpus = InMemoryCorpus::from_documents(vec![vec![1, 2]; 50]);
    let config = PackingConfig { pad_to_block_boundary: false, ..config(4, 4) };
    let dataset = PackedDataset::new(corpus, config).unwrap();
    let all: Vec<u32> = samples(&dataset).into_iter().flat_map(|sample| sample.ids).collect();
    let documents = all.split_inclusive(|&id| id == EOS).filter(|document| document.contains(&EOS));
    let mut n_pads = Vec::new();
    for document in documents {
        let pads = document.len() - 3;
        assert_eq!(document[pads..], [1, 2, EOS]);
        assert!(document[..pads].iter().all(|&id| id == PAD));
        n_pads.push(pads);
    }
    assert!(n_pads.len() >= 49);
    for r in 0..4 {
        assert!(n_pads.contains(&r), "{r} pads never drawn");
    }
    assert!(n_pads.iter().all(|&r| r < 4));
}

#[test]
fn a_document_runs_on_into_the_next_samples() {
    let corpus = InMemoryCorpus::from_documents([(0..10).collect::<Vec<u32>>()]);
    let dataset = PackedDataset::new(corpus, PackingConfig::vanilla(4, EOS)).unwrap();
    assert_eq!(dataset.sample(1).ids, [4, 5, 6, 7]);
    assert_eq!(dataset.len(), 2);
    assert_eq!(dataset.statistics().n_dropped_tokens, 3);
}

#[test]
fn padding_with_the_end_of_text_token_is_told_apart_by_the_mask() {
    let corpus = InMemoryCorpus::from_documents([[7]]);
    let config = PackingConfig { random_pad_first_block: false, ..PackingConfig::new(4, 4, EOS) };
    let sample = PackedDataset::new(corpus, config).unwrap().sample(0);
    assert_eq!(sample.ids, [7, EOS, EOS, EOS]);
    assert_eq!(sample.mask, [true, true, false, false]);
    assert_eq!(sample.n_content(), 2);
}

#[test]
fn leading_padding_depends_on_the_seed_and_the_index_alone() {
    let of_seed = |seed| {
        let config = PackingConfig { seed, ..config(8, 8) };
        (0..64).map(|index| config.n_leading_pads(index)).collect::<Vec<_>>()
    };
    assert_eq!(of_seed(1), of_seed(1));
    assert_ne!(of_seed(1), of_seed(2));
}

#[test]
fn a_corpus_shorter_than_a_sample_is_an_error_with_the_numbers() {
    let corpus = InMemoryCorpus::from_documents([vec![1, 2, 3], vec![4, 5]]);
    let error = PackedDataset::new(corpus, PackingConfig::vanilla(8, EOS)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the corpus is shorter than one sample: expected at least 8 tokens, got 7 \
         (2 documents, 5 tokens before packing)"
    );
}

#[test]
fn lengths_that_make_no_whole_blocks_are_refused() {
    for (block_length, max_length, message) in [
        (0, 8, "block_length must be at least 1, got 0"),
        (4, 0, "max_length must be at least 1, got 0"),
        (4, 10, "max_length must be a multiple of block_length: expected a multiple of 4, got 10"),
    ] {
        let corpus = InMemoryCorpus::from_documents([vec![1; 100]]);
        let error = PackedDataset::new(corpus, config(block_length, max_length)).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
#[should_panic(expected = "sample 1 of a dataset of 1")]
fn a_sample_that_is_not_there_panics() {
    let corpus = InMemoryCorpus::from_documents([vec![1; 4]]);
    PackedDataset::new(corpus, PackingConfig::vanilla(4, EOS)).unwrap().sample(1);
}

#[test]
fn the_configuration_is_written_as_json_and_read_back() {
    let config = PackingConfig { seed: u64::MAX, ..config(4, 16) };
    assert_eq!(
        config.to_json(),
        r#"{"block_length":4,"max_length":16,"random_pad_first_block":true,"pad_to_block_boundary":true,"#.to_owned()
            + r#""eos_token_id":1000,"pad_token_id":1001,"block_lengths":{"kind":"fixed"},"seed":18446744073709551615}"#
    );
    assert_eq!(serde_json::from_str::<PackingConfig>(&config.to_json()).unwrap(), config);
}

/// Documents of distinct tokens, so that every token tells where it is from: `100 * document + place`.
fn corpora() -> impl Strategy<Value = InMemoryCorpus> {
    prop::collection::vec(0_usize..30, 1..9).prop_map(|lengths| {
        InMemoryCorpus::from_documents(
            lengths.iter().enumerate().map(|(document, &length)| {
                (0..length).map(|place| (100 * document + place) as u32).collect::<Vec<_>>()
            }),
        )
    })
}

fn configs() -> impl Strategy<Value = PackingConfig> {
    (1_usize..7, 1_usize..5, any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |(block_length, n_blocks, random_pad_first_block, pad_to_block_boundary, seed)| PackingConfig {
            random_pad_first_block,
            pad_to_block_boundary,
            seed,
            ..config(block_length, block_length * n_blocks)
        },
    )
}

/// The corpus packed in the plainest way: one list, built document by document, cut into chunks.
fn packed_plainly(corpus: &InMemoryCorpus, config: &PackingConfig) -> Vec<Sample> {
    let mut all: Vec<(u32, bool)> = Vec::new();
    for index in 0..corpus.n_documents() {
        let start = all.len();
        all.extend(vec![(PAD, false); config.n_leading_pads(index)]);
        all.extend(corpus.document(index).iter().map(|&id| (id, true)));
        all.push((EOS, true));
        while config.pad_to_block_boundary && !(all.len() - start).is_multiple_of(config.block_length) {
            all.push((PAD, false));
        }
    }
    let sample = |chunk: &[(u32, bool)]| {
        let (ids, mask) = chunk.iter().copied().unzip();
        Sample { ids, mask, prompt: Vec::new() }
    };
    all.chunks_exact(config.max_length).map(sample).collect()
}

proptest! {
    #[test]
    fn samples_are_the_chunks_of_all_documents_laid_end_to_end(corpus in corpora(), config in configs()) {
        let expected = packed_plainly(&corpus, &config);
        match PackedDataset::new(corpus, config) {
            Ok(dataset) => prop_assert_eq!(samples(&dataset), expected),
            Err(error) => {
                let is_too_short = matches!(error, DataError::CorpusTooShort { .. });
                prop_assert!(is_too_short, "{error}");
                prop_assert!(expected.is_empty());
            }
        }
    }

    #[test]
    fn the_content_of_all_samples_is_the_documents_and_their_ends(corpus in corpora(), config in configs()) {
        let Ok(dataset) = PackedDataset::new(corpus.clone(), config) else { return Ok(()) };
        let mut expected = Vec::new();
        for index in 0..corpus.n_documents() {
            expected.extend(corpus.document(index).iter());
            expected.push(EOS);
        }
        let mut content = Vec::new();
        for sample in samples(&dataset) {
            prop_assert_eq!(sample.ids.len(), config.max_length);
            prop_assert_eq!(sample.mask.len(), config.max_length);
            for (id, is_content) in sample.ids.into_iter().zip(sample.mask) {
                if is_content { content.push(id) } else { prop_assert_eq!(id, PAD) }
            }
        }
        let statistics = dataset.statistics();
        prop_assert_eq!(statistics.n_content_tokens, expected.len());
        let n_missing = expected.len() - content.len();
        prop_assert!(n_missing <= statistics.n_dropped_tokens);
        prop_assert_eq!(&content[..], &expected[..content.len()]);
        let n_packed = statistics.n_samples * config.max_length + statistics.n_dropped_tokens;
        prop_assert_eq!(n_packed, statistics.n_content_tokens + statistics.n_padding_tokens);
    }

    #[test]
    fn every_document_starts_where_it_says(corpus in corpora(), config in configs()) {
        let Ok(dataset) = PackedDataset::new(corpus.clone(), config) else { return Ok(()) };
        for index in 0..corpus.n_documents() {
            let (sample, place) = dataset.document_start(index);
            if sample < dataset.len() {
                let expected = corpus.document(index).first().copied().unwrap_or(EOS);
                prop_assert_eq!(dataset.sample(sample).ids[place], expected);
                if config.random_pad_first_block && config.pad_to_block_boundary {
                    prop_assert_eq!(place % config.block_length, config.n_leading_pads(index));
                }
            }
        }
    }

    #[test]
    fn with_both_paddings_no_block_holds_two_documents(corpus in corpora(), config in configs()) {
        let config = PackingConfig { random_pad_first_block: true, pad_to_block_boundary: true, ..config };
        let Ok(dataset) = PackedDataset::new(corpus, config) else { return Ok(()) };
        for sample in samples(&dataset) {
            for block in sample.ids.chunks(config.block_length) {
                let mut documents: Vec<u32> = block.iter().filter(|&&id| id < EOS).map(|id| id / 100).collect();
                documents.dedup();
                prop_assert!(documents.len() <= 1, "{block:?}");
                let end = block.iter().position(|&id| id == EOS).unwrap_or(block.len());
                prop_assert!(block.iter().skip(end + 1).all(|&id| id == PAD), "{block:?}");
            }
        }
    }
}
