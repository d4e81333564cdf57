//! A model directory, whichever model it holds.

use std::path::Path;

use blockformer_files::write_atomically;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};

use crate::checkpoint::{CONFIG_FILE, WEIGHTS_FILE};
use crate::{
    BlockLayout, BlockTransformer, Checkpoint, CheckpointError, ModelConfig, ParameterCount, SavePrecision,
    VanillaTransformer, reference, save_weights,
};

/// A Block Transformer of this family's parts, or the vanilla baseline.
#[derive(Module, Debug)]
pub enum AnyModel {
    /// See [`BlockTransformer`].
    Block(BlockTransformer),
    /// See [`VanillaTransformer`].
    Vanilla(VanillaTransformer),
}

impl AnyModel {
    /// A model with random weights.
    ///
    /// # Errors
    /// [`CheckpointError::Config`], with `config.json` as the file, if sizes do not fit together.
    pub fn new(config: &ModelConfig, device: &Device) -> Result<Self, CheckpointError> {
        Self::init(config, Path::new(CONFIG_FILE), device)
    }

    fn init(config: &ModelConfig, path: &Path, device: &Device) -> Result<Self, CheckpointError> {
        let model = match config {
            ModelConfig::BlockTransformer(config) => config.init(device).map(Self::Block),
            ModelConfig::VanillaTransformer(config) => config.init(device).map(Self::Vanilla),
        };
        model.map_err(|source| CheckpointError::Config { path: path.into(), source })
    }

    /// Opens a model directory: this library's own (`config.json` with an `architecture`), a checkpoint of the
    /// authors' implementation (`trainer.yaml` or `trainer.json`), or a Hugging Face directory of the GPT-NeoX or
    /// Llama family (`config.json` with a `model_type` of `gpt_neox`, `llama`, `mistral` or `qwen2`), each with
    /// `model.safetensors` or its shards.
    ///
    /// # Errors
    /// A [`CheckpointError`] that names the file and what is wrong with it.
    pub fn load(directory: &Path, device: &Device) -> Result<(ModelConfig, Self), CheckpointError> {
        let (config, model, checkpoint) = Self::find(directory, device)?;
        Ok((config, checkpoint.load_into(model)?))
    }

    /// The same, but each weight is read when it is first used: a model that is packed, weight by weight, is never held whole.
    /// Names, types and shapes are checked at once. [`read_weights`](Self::read_weights) reads what is left.
    ///
    /// The files are mapped into memory, and must stay as they are until all weights have been read: if one is cut short,
    /// the system may end the program, and if one is written over in place, weights may be those of either. Replacing a
    /// file by another of its name (renaming, as everything here writes) or deleting it does no harm on Unix.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    ///
    /// # Panics
    /// Not here, but where a weight is first used, if it can then not be read.
    pub fn load_deferred(directory: &Path, device: &Device) -> Result<(ModelConfig, Self), CheckpointError> {
        let (config, model, checkpoint) = Self::find(directory, device)?;
        Ok((config, checkpoint.defer_into(model)?))
    }

    /// Reads the weights that have not been used yet.
    ///
    /// # Panics
    /// If one cannot be read.
    pub fn read_weights(&self) {
        self.visit(&mut Read);
    }

    /// A model directory's configuration, a model of it and the weights to give it.
    fn find(directory: &Path, device: &Device) -> Result<(ModelConfig, Self, Checkpoint), CheckpointError> {
        let (config, config_path, format) = ModelConfig::find(directory)?;
        let model = Self::init(&config, &config_path, device)?;
        let mut checkpoint = Checkpoint::open(directory)?;
        if let Some(format) = format {
            checkpoint = reference::translate(checkpoint, &config, format)?;
        }
        Ok((config, model, checkpoint))
    }

    /// Opens a model that is part of a program: the text of its `config.json` and the bytes of its
    /// `model.safetensors`.
    ///
    /// # Errors
    /// A [`CheckpointError`] that says what is wrong with them.
    pub fn from_bytes(config: &str, weights: &[u8], device: &Device) -> Result<(ModelConfig, Self), CheckpointError> {
        let path = Path::new(CONFIG_FILE);
        let config =
            serde_json::from_str(config).map_err(|source| CheckpointError::Json { path: path.into(), source })?;
        let model = Self::init(&config, path, device)?;
        let checkpoint = Checkpoint::from_bytes(WEIGHTS_FILE, weights.to_vec())?;
        Ok((config, checkpoint.load_into(model)?))
    }

    /// Writes `config.json` and `model.safetensors` into `directory`, which is made if need be.
    ///
    /// # Errors
    /// A [`CheckpointError`] that names the file; each file is either written whole or as it was.
    pub fn save(
        &self,
        config: &ModelConfig,
        directory: &Path,
        precision: SavePrecision,
    ) -> Result<(), CheckpointError> {
        std::fs::create_dir_all(directory).map_err(|e| CheckpointError::io("make directory", directory, e))?;
        save_weights(self, &directory.join(WEIGHTS_FILE), precision)?;
        let path = directory.join(CONFIG_FILE);
        write_atomically(&path, config.to_json()).map_err(|e| CheckpointError::io("write", &path, e))
    }

    /// Its blocks (of one token for a vanilla transformer), context and vocabulary.
    pub fn layout(&self) -> BlockLayout {
        match self {
            Self::Block(model) => model.layout(),
            Self::Vanilla(model) => model.layout(),
        }
    }

    /// The number of parameters.
    pub fn parameters(&self) -> ParameterCount {
        ParameterCount::of(self)
    }
}

struct Read;

impl ModuleVisitor for Read {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        parameter.val();
    }
}
