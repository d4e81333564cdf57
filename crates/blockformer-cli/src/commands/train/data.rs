//! Text to packed samples.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use blockformer::data::{
    BlockLengths, Documents, InMemoryCorpus, PackedDataset, PackingConfig, TokenCorpus, Tokenizer, TokenizerTraining,
    character_level_of, read_documents,
};
use blockformer::model::{ModelConfig, TOKENIZER_FILE};

use super::{Arguments, Split};
use crate::error::CliError;
use crate::vocabulary;

pub(super) struct Text {
    pub(super) tokenizer: Tokenizer,
    /// Tells tokenizers apart.
    pub(super) tokenizer_digest: String,
    pub(super) train: PackedDataset<InMemoryCorpus>,
    pub(super) validation: PackedDataset<InMemoryCorpus>,
}

/// Reads the text and packs it. A run that goes on takes the tokenizer it began with, unless that was a file.
pub(super) fn prepare(arguments: &Arguments, config: &ModelConfig, resumes: bool) -> Result<Text, CliError> {
    let tokenizer = tokenizer(arguments, resumes)?;
    let path = PathBuf::from(&arguments.tokenizer);
    vocabulary::check(&path, &tokenizer, config)?;
    let eos = config.eos_token_id().or_else(|| tokenizer.eos_token_id()).ok_or(CliError::NoEndOfText { path })?;
    let corpus = InMemoryCorpus::tokenize_stream(Documents::open(&arguments.data)?, &tokenizer)?;
    eprintln!("{} tokens in {} documents", corpus.n_tokens(), corpus.n_documents());
    let (train, validation) = if arguments.validation_data.is_empty() {
        match arguments.validation_split {
            Split::Documents => corpus.split_documents(arguments.validation_share, arguments.seed)?,
            Split::Tail => corpus.split_tail(arguments.validation_share)?,
        }
    } else {
        let held_out = Documents::open(&arguments.validation_data)?;
        (corpus, InMemoryCorpus::tokenize_stream(held_out, &tokenizer)?)
    };
    let packing = packing(arguments, config, eos);
    let mut hasher = DefaultHasher::new();
    tokenizer.to_json()?.hash(&mut hasher);
    Ok(Text {
        tokenizer_digest: format!("{:016x}", hasher.finish()),
        tokenizer,
        train: PackedDataset::new(train, packing)?,
        validation: PackedDataset::new(validation, packing)?,
    })
}

fn tokenizer(arguments: &Arguments, resumes: bool) -> Result<Tokenizer, CliError> {
    let name = arguments.tokenizer.as_str();
    if resumes && (name == "characters" || name.starts_with("bpe:")) {
        return Ok(Tokenizer::from_file(arguments.output.join(TOKENIZER_FILE))?);
    }
    if name == "characters" {
        let documents = read_documents(&arguments.data)?.into_iter().chain(if arguments.validation_data.is_empty() {
            Vec::new()
        } else {
            read_documents(&arguments.validation_data)?
        });
        return Ok(character_level_of(documents)?);
    }
    let Some(size) = name.strip_prefix("bpe:") else { return Ok(Tokenizer::from_file(Path::new(name))?) };
    let size = size.parse().map_err(|_| CliError::Option {
        option: "--tokenizer",
        reason: format!("{size:?} is not a number of tokens"),
    })?;
    Ok(TokenizerTraining::new(size).train_byte_level_bpe_on_files(&arguments.data)?)
}

fn packing(arguments: &Arguments, config: &ModelConfig, eos: u32) -> PackingConfig {
    let context = config.max_length();
    match config {
        ModelConfig::VanillaTransformer(_) => {
            let max_length = arguments.sample_length.unwrap_or(context);
            PackingConfig { seed: arguments.seed, ..PackingConfig::vanilla(max_length, eos) }
        }
        ModelConfig::BlockTransformer(config) => {
            let (block_lengths, fitting) = match arguments.shortest_block {
                None => (BlockLengths::Fixed, context),
                // As many tokens as blocks of the mean length hold.
                Some(shortest) => {
                    let tokens = config.max_blocks().saturating_mul(shortest.saturating_add(config.block_length)) / 2;
                    (BlockLengths::Uniform { shortest }, tokens)
                }
            };
            PackingConfig {
                random_pad_first_block: config.random_pad_first_block,
                pad_to_block_boundary: config.pad_to_block_boundary,
                pad_token_id: config.pad_token_id,
                block_lengths,
                seed: arguments.seed,
                ..PackingConfig::new(config.block_length, arguments.sample_length.unwrap_or(fitting), eos)
            }
        }
    }
}
