//! Text to packed samples.

use std::path::{Path, PathBuf};

use blockformer::check_tokenizer;
use blockformer::data::{
    BlockLengths, ConcatenatedCorpus, CorpusPart, Documents, InMemoryCorpus, MegatronCorpus, PackedDataset,
    PackingConfig, PairsCorpus, TokenCorpus, Tokenizer, TokenizerTraining, character_level_of, read_documents,
};
use blockformer::model::{ModelConfig, TOKENIZER_FILE};

use super::{Arguments, Split};
use crate::error::CliError;

/// The most tokens of a dataset that are all looked at before training; those of larger ones are when they are used.
const VALIDATED_TOKENS: usize = 1 << 30;

/// Text in memory, or datasets on disk; all of it or a part.
pub(super) type Corpus = CorpusPart<Box<dyn TokenCorpus>>;

pub(super) struct Text {
    pub(super) tokenizer: Tokenizer,
    /// Tells tokenizers apart.
    pub(super) tokenizer_digest: String,
    pub(super) train: PackedDataset<Corpus>,
    pub(super) validation: PackedDataset<Corpus>,
}

/// Reads the text and packs it. A run that goes on takes the tokenizer it began with, unless that was a file.
pub(super) fn prepare(arguments: &Arguments, config: &ModelConfig, seed: u64, resumes: bool) -> Result<Text, CliError> {
    let tokenizer = tokenizer(arguments, resumes)?;
    let path = PathBuf::from(&arguments.tokenizer);
    check_tokenizer(&path, &tokenizer, config)?;
    let eos = config.eos_token_id().or_else(|| tokenizer.eos_token_id()).ok_or(CliError::NoEndOfText { path })?;
    let corpus: Box<dyn TokenCorpus> = if arguments.pairs.is_empty() {
        read(&arguments.data, &tokenizer, config, eos)?
    } else {
        Box::new(PairsCorpus::read(&arguments.pairs, &tokenizer)?)
    };
    eprintln!("{} tokens in {} documents", corpus.n_tokens(), corpus.n_documents());
    let (train, validation) = if arguments.validation_data.is_empty() {
        match arguments.validation_split {
            Split::Documents => CorpusPart::split_documents(corpus, arguments.validation_share, seed)?,
            Split::Tail => CorpusPart::split_tail(corpus, arguments.validation_share)?,
        }
    } else {
        let held_out: Box<dyn TokenCorpus> = if arguments.pairs.is_empty() {
            read(&arguments.validation_data, &tokenizer, config, eos)?
        } else {
            Box::new(PairsCorpus::read(&arguments.validation_data, &tokenizer)?)
        };
        (CorpusPart::whole(corpus), CorpusPart::whole(held_out))
    };
    let packing = packing(arguments, config, seed, eos)?;
    Ok(Text {
        tokenizer_digest: tokenizer.digest()?,
        tokenizer,
        train: PackedDataset::new(train, packing)?,
        validation: PackedDataset::new(validation, packing)?,
    })
}

/// Text, tokenized; or datasets, mapped into memory.
fn read(
    paths: &[PathBuf],
    tokenizer: &Tokenizer,
    config: &ModelConfig,
    eos: u32,
) -> Result<Box<dyn TokenCorpus>, CliError> {
    let datasets: Vec<&PathBuf> = paths.iter().filter(|path| is_dataset(path)).collect();
    match datasets.as_slice() {
        [] => Ok(Box::new(InMemoryCorpus::tokenize_stream(Documents::open(paths)?, tokenizer)?)),
        [path] if paths.len() == 1 => Ok(Box::new(open(path, tokenizer, config, eos)?)),
        all if paths.len() == all.len() => {
            let corpora = all.iter().map(|path| open(path, tokenizer, config, eos)).collect::<Result<_, _>>()?;
            Ok(Box::new(ConcatenatedCorpus::new(corpora)))
        }
        [path, ..] => {
            let reason = format!("{} is a dataset, others are text: tokenize these first", path.display());
            Err(CliError::Option { option: "--data", reason })
        }
    }
}

/// Whether a path is meant as a Megatron dataset.
fn is_dataset(path: &Path) -> bool {
    let has_ending = path.extension().is_some_and(|ending| ending == "idx" || ending == "bin");
    has_ending || !path.is_dir() && MegatronCorpus::exists(path)
}

fn open(path: &Path, tokenizer: &Tokenizer, config: &ModelConfig, eos: u32) -> Result<MegatronCorpus, CliError> {
    let corpus = MegatronCorpus::open(path)?;
    if let Some(card) = corpus.card()
        && card.tokenizer != tokenizer.digest()?
    {
        return Err(CliError::OtherTokenizer { path: path.into() });
    }
    if corpus.n_tokens() <= VALIDATED_TOKENS {
        corpus.validate(config.vocab_size()).map_err(|source| CliError::Dataset { path: path.into(), source })?;
    }
    // Packing puts an end of text behind each document, where there may be one already.
    let written = match corpus.card() {
        Some(card) if card.ends_with_eos => tokenizer.eos_token_id(),
        Some(_) => None,
        None => Some(eos),
    };
    Ok(match written {
        Some(eos) => corpus.without_trailing(eos),
        None => corpus,
    })
}

fn tokenizer(arguments: &Arguments, resumes: bool) -> Result<Tokenizer, CliError> {
    let name = arguments.tokenizer.as_str();
    if resumes && (name == "characters" || name.starts_with("bpe:")) {
        return Ok(Tokenizer::from_file(arguments.output.join(TOKENIZER_FILE))?);
    }
    let learns = name == "characters" || name.starts_with("bpe:");
    if learns && !arguments.pairs.is_empty() {
        let reason = "prompts and answers need the tokenizer of their model: give its tokenizer.json".into();
        return Err(CliError::Option { option: "--tokenizer", reason });
    }
    if learns && arguments.data.iter().chain(&arguments.validation_data).any(|path| is_dataset(path)) {
        let reason = "a dataset is tokenized already: give its tokenizer.json".into();
        return Err(CliError::Option { option: "--tokenizer", reason });
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

fn packing(arguments: &Arguments, config: &ModelConfig, seed: u64, eos: u32) -> Result<PackingConfig, CliError> {
    let context = config.max_length();
    let packing = match config {
        ModelConfig::VanillaTransformer(_) => {
            if arguments.shortest_block.is_some() {
                let reason = "a vanilla transformer has no blocks whose length could be drawn".into();
                return Err(CliError::Option { option: "--shortest-block", reason });
            }
            let max_length = arguments.sample_length.unwrap_or(context);
            PackingConfig { seed, ..packing_of(config, max_length, eos) }
        }
        ModelConfig::BlockTransformer(block) => {
            let (block_lengths, fitting) = match arguments.shortest_block {
                None => (BlockLengths::Fixed, context),
                // As many tokens as blocks of the mean length hold.
                Some(shortest) => {
                    let tokens = block.max_blocks().saturating_mul(shortest.saturating_add(block.block_length)) / 2;
                    (BlockLengths::Uniform { shortest }, tokens)
                }
            };
            let length = arguments.sample_length.unwrap_or(fitting);
            PackingConfig { block_lengths, seed, ..packing_of(config, length, eos) }
        }
    };
    Ok(packing)
}

/// How samples of `max_length` are packed for a model.
pub(crate) fn packing_of(config: &ModelConfig, max_length: usize, eos: u32) -> PackingConfig {
    match config {
        ModelConfig::VanillaTransformer(_) => PackingConfig::vanilla(max_length, eos),
        ModelConfig::BlockTransformer(config) => PackingConfig {
            random_pad_first_block: config.random_pad_first_block,
            pad_to_block_boundary: config.pad_to_block_boundary,
            pad_token_id: config.pad_token_id,
            ..PackingConfig::new(config.block_length, max_length, eos)
        },
    }
}
