//! Checkpoints of the authors' PyTorch implementation and Hugging Face directories of the GPT-NeoX and Llama families.
//!
//! [`translate`] turns their names and layouts into this library's. What differs besides names: GPT-NeoX, and with it
//! the authors, fuses queries, keys and values head by head (`[head, (q, k, v), head_dim]`), Llama keeps them apart,
//! and this library puts all queries first, then keys, then values, in one matrix; and the authors write the
//! embedder's projection and the token decoder's expansion as convolutions whose stride is their width, which are
//! linear maps of the concatenated inputs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use blockformer_nn::TransformerConfig;
use burn::store::bridge;
use burn::store::burn_pack::Tensor as PackTensor;
use burn::tensor::{Shape, TensorData};

use crate::checkpoint::{CONFIG_FILE, check_float};
use crate::{Checkpoint, CheckpointError, ModelConfig};

mod gpt_neox;
mod hugging_face;
mod llama;
mod parts;
mod roberta;
mod t5;
mod trainer;

pub use gpt_neox::GptNeoXConfig;
pub use hugging_face::RopeParameters;
pub use llama::{EosTokenIds, LlamaConfig, LlamaFamily};
pub use trainer::{AutoEncodingLoss, BlockDecodingLoss, BlockDecodingLossKind, TrainerFile};

/// Whose names and layouts a foreign checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// The authors' implementation of the Block Transformer, with its trainer file.
    Trainer,
    /// Hugging Face GPT-NeoX.
    GptNeoX,
    /// Hugging Face Llama, and models of its layers and names: see [`LlamaFamily`].
    Llama,
}

/// What a foreign model directory holds.
#[derive(Debug, Clone, PartialEq)]
pub struct ForeignModel {
    /// The model, in this library's words.
    pub config: ModelConfig,
    /// The file that describes it.
    pub path: PathBuf,
    /// The names and layouts of its tensors.
    pub format: Format,
}

/// The configuration of a foreign model directory; `None` if `directory` is this library's own.
///
/// # Errors
/// A [`CheckpointError`] if there is no configuration at all, or one that cannot be read.
pub fn find_config(directory: &Path) -> Result<Option<ForeignModel>, CheckpointError> {
    for name in ["trainer.yaml", "trainer.yml", "trainer.json"] {
        let path = directory.join(name);
        if path.exists() {
            let config = ModelConfig::BlockTransformer(TrainerFile::load(&path)?.model_config(&path)?);
            return Ok(Some(ForeignModel { config, path, format: Format::Trainer }));
        }
    }
    let path = directory.join(CONFIG_FILE);
    if !path.exists() {
        let expected = "config.json, trainer.yaml or trainer.json";
        return Err(CheckpointError::NoModel { path: directory.into(), expected });
    }
    hugging_face::find_config(path)
}

/// How the numbers of a tensor are arranged in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As in this library (linear weights `[out, in]`).
    Same,
    /// A convolution `[out, in, width]` whose stride is its width: here `[out, width · in]`.
    Convolution,
    /// Rows `[head, (q, k, v), head_dim]`: here `[(q, k, v), head, head_dim]`.
    FusedHeads {
        /// Heads.
        n_heads: usize,
        /// Features a head.
        head_dim: usize,
    },
    /// As in this library, but only some rows of a parameter of `total` rows: separate queries, keys and values.
    Rows {
        /// The first of the rows.
        offset: usize,
        /// How many.
        rows: usize,
        /// Rows of the whole parameter.
        total: usize,
    },
}

impl Layout {
    /// The shape in this library of a tensor of `shape` in the file, or the shape that was expected there.
    fn shape(self, shape: &[usize]) -> Result<Vec<usize>, Vec<usize>> {
        match (self, shape) {
            (Self::Same, _) => Ok(shape.to_vec()),
            (Self::Rows { rows, .. }, [got, columns @ ..]) => {
                if *got == rows {
                    Ok(shape.to_vec())
                } else {
                    Err([&[rows], columns].concat())
                }
            }
            (Self::Rows { rows, .. }, []) => Err(vec![rows]),
            (Self::Convolution, &[out, input, width]) => Ok(vec![out, width * input]),
            (Self::Convolution, &[_]) => Ok(shape.to_vec()), // its bias
            (Self::Convolution, _) => Err(vec![shape.first().copied().unwrap_or(1), 1, 1]),
            (Self::FusedHeads { n_heads, head_dim }, [got, columns @ ..]) => {
                let rows = 3 * n_heads * head_dim;
                let expected = [&[rows], columns].concat();
                if *got == rows { Ok(expected) } else { Err(expected) }
            }
            (Self::FusedHeads { n_heads, head_dim }, []) => Err(vec![3 * n_heads * head_dim]),
        }
    }

    /// Where the tensor's numbers are among those of the parameter.
    pub fn range(self, shape_in_file: &[usize]) -> Range<usize> {
        let n: usize = shape_in_file.iter().product();
        match self {
            Self::Rows { offset, .. } => {
                let columns: usize = shape_in_file[1..].iter().product();
                offset * columns..offset * columns + n
            }
            _ => 0..n,
        }
    }

    /// For each element of this library's tensor, the index of the same element in the file.
    fn source(self, shape_in_file: &[usize]) -> Option<Vec<usize>> {
        match (self, shape_in_file) {
            (Self::Convolution, &[out, input, width]) => {
                let element = |i: usize| {
                    let (row, column) = (i / (width * input), i % (width * input));
                    (row * input + column % input) * width + column / input
                };
                Some((0..out * width * input).map(element).collect())
            }
            (Self::FusedHeads { n_heads, head_dim }, shape) => {
                let columns: usize = shape[1..].iter().product();
                let element = |i: usize| {
                    let (row, column) = (i / columns, i % columns);
                    let (part, head, feature) = (row / (n_heads * head_dim), row / head_dim % n_heads, row % head_dim);
                    ((head * 3 + part) * head_dim + feature) * columns + column
                };
                Some((0..shape[0] * columns).map(element).collect())
            }
            _ => None,
        }
    }

    /// Rearranges numbers from the file's layout into this library's.
    ///
    /// # Panics
    /// If `values` are not as many as `shape_in_file` says.
    pub fn arrange(self, values: &[f32], shape_in_file: &[usize]) -> Vec<f32> {
        match self.source(shape_in_file) {
            Some(source) => source.iter().map(|&from| values[from]).collect(),
            None => values.to_vec(),
        }
    }

    /// Rearranges numbers from this library's layout into the file's, the inverse of [`arrange`](Self::arrange).
    ///
    /// # Panics
    /// If `values` are not as many as `shape_in_file` says.
    pub fn restore(self, values: &[f32], shape_in_file: &[usize]) -> Vec<f32> {
        let Some(source) = self.source(shape_in_file) else { return values.to_vec() };
        let mut restored = vec![0.0; values.len()];
        for (to, &from) in source.iter().enumerate() {
            restored[from] = values[to];
        }
        restored
    }
}

/// What becomes of a tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Translation {
    /// It is the parameter of this name, arranged like this.
    Parameter(String, Layout),
    /// It is not needed: an unused table or a buffer of old versions.
    Ignored,
    /// It is nothing known.
    Unknown,
}

/// Where the tensor `name` of a foreign checkpoint of the format belongs in a model of configuration `config`.
pub fn translate_name(name: &str, config: &ModelConfig, format: Format) -> Translation {
    match (format, config) {
        (Format::Trainer, ModelConfig::BlockTransformer(config)) => trainer::translate_block(name, config),
        (Format::GptNeoX, ModelConfig::VanillaTransformer(config)) => {
            gpt_neox::translate_vanilla(name, &config.transformer)
        }
        (Format::Llama, ModelConfig::VanillaTransformer(config)) => llama::translate(name, config),
        _ => Translation::Unknown,
    }
}

/// Gives the tensors of a foreign checkpoint this library's names and layouts.
///
/// # Errors
/// A [`CheckpointError`] naming a tensor that is unknown, or whose shape cannot be rearranged.
pub fn translate(checkpoint: Checkpoint, config: &ModelConfig, format: Format) -> Result<Checkpoint, CheckpointError> {
    let mut tensors = BTreeMap::new();
    let mut names_in_file = possible_names(config, format);
    let mut parts = parts::Parts::default();
    let mut unknown = Vec::new();
    for (name, tensor) in &checkpoint.tensors {
        match translate_name(name, config, format) {
            Translation::Parameter(parameter, layout) => {
                check_float(checkpoint.path(), name, tensor.dtype)?;
                let arranged =
                    arrange_tensor(tensor, &parameter, layout).map_err(|expected| CheckpointError::Shape {
                        path: checkpoint.path().into(),
                        name: name.clone(),
                        expected,
                        got: tensor.shape.to_vec(),
                    })?;
                match layout {
                    Layout::Rows { offset, total, .. } => parts.add(&parameter, name, offset, total, arranged),
                    _ => {
                        tensors.insert(parameter.clone(), arranged);
                        names_in_file.insert(parameter, name.clone());
                    }
                }
            }
            Translation::Ignored => {}
            Translation::Unknown => unknown.push(name.clone()),
        }
    }
    if !unknown.is_empty() {
        return Err(CheckpointError::Unknown { path: checkpoint.path().into(), names: unknown });
    }
    names_in_file.extend(parts.names());
    tensors.extend(parts.join(checkpoint.path())?);
    Ok(checkpoint.renamed(tensors, names_in_file))
}

fn arrange_tensor(tensor: &PackTensor, parameter: &str, layout: Layout) -> Result<PackTensor, Vec<usize>> {
    let in_file = tensor.shape.to_vec();
    let shape = layout.shape(&in_file)?;
    let (dtype, here) = (burn::tensor::DType::F32, shape.clone());
    let arrange = move |data: TensorData| {
        let values: Vec<f32> = data.iter::<f32>().collect();
        TensorData::new(layout.arrange(&values, &in_file), here.clone())
    };
    Ok(bridge::map_data(tensor.clone(), parameter.to_string(), dtype, Shape::from(shape), arrange))
}

/// The modules of a GPT-NeoX layer, and what they are called here.
const GPT_NEOX_MODULES: [(&str, &str); 6] = [
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "feed_forward_norm"),
    ("attention.query_key_value", "attention.qkv"),
    ("attention.dense", "attention.output"),
    ("mlp.dense_h_to_4h", "feed_forward.up"),
    ("mlp.dense_4h_to_h", "feed_forward.down"),
];

/// The names that a checkpoint of this configuration can have in its file, each with the parameter it belongs to: what
/// a missing parameter would be called there.
fn possible_names(config: &ModelConfig, format: Format) -> BTreeMap<String, String> {
    let stems = match config {
        ModelConfig::BlockTransformer(config) => trainer::stems(config),
        ModelConfig::VanillaTransformer(config) if format == Format::Llama => llama::stems(config.transformer.n_layers),
        ModelConfig::VanillaTransformer(config) => gpt_neox::stems("", config.transformer.n_layers),
    };
    let names = stems.into_iter().flat_map(|stem| [format!("{stem}.weight"), format!("{stem}.bias")]);
    let parameter = |name: String| match translate_name(&name, config, format) {
        Translation::Parameter(parameter, _) => Some((parameter, name)),
        _ => None,
    };
    names.filter_map(parameter).collect()
}

/// Where a tensor of a GPT-NeoX stack belongs: `name` without the `gpt_neox.` prefix, the answer below `transformer.`.
pub(crate) fn translate_stack(name: &str, config: &TransformerConfig) -> Translation {
    let parameter = |path: String, layout| Translation::Parameter(format!("transformer.{path}"), layout);
    if let Some(kind) = name.strip_prefix("final_layer_norm.") {
        return parameter(format!("final_norm.{kind}"), Layout::Same);
    }
    let Some((index, rest)) = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
        return Translation::Unknown;
    };
    if matches!(rest, "attention.rotary_emb.inv_freq" | "attention.bias" | "attention.masked_bias") {
        return Translation::Ignored;
    }
    for (theirs, ours) in GPT_NEOX_MODULES {
        let layout = match ours {
            "attention.qkv" => Layout::FusedHeads { n_heads: config.n_heads, head_dim: config.head_dim },
            _ => Layout::Same,
        };
        if let Some(kind @ ("weight" | "bias")) = rest.strip_prefix(theirs).and_then(|kind| kind.strip_prefix('.')) {
            return parameter(format!("layers.{index}.{ours}.{kind}"), layout);
        }
    }
    Translation::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fused_heads_become_queries_then_keys_then_values() {
        // 2 heads of 1 feature: rows q0 k0 v0 q1 k1 v1, two columns each.
        let values: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let layout = Layout::FusedHeads { n_heads: 2, head_dim: 1 };
        let arranged = layout.arrange(&values, &[6, 2]);
        assert_eq!(arranged, [0.0, 1.0, 6.0, 7.0, 2.0, 3.0, 8.0, 9.0, 4.0, 5.0, 10.0, 11.0]);
        assert_eq!(layout.restore(&arranged, &[6, 2]), values);
        assert_eq!(layout.shape(&[5, 2]), Err(vec![6, 2]));
    }

    #[test]
    fn convolutions_become_maps_of_concatenated_inputs() {
        // [out 1, in 2, width 3], value = 10 · in + position.
        let values = [0.0, 1.0, 2.0, 10.0, 11.0, 12.0];
        let arranged = Layout::Convolution.arrange(&values, &[1, 2, 3]);
        assert_eq!(arranged, [0.0, 10.0, 1.0, 11.0, 2.0, 12.0]);
        assert_eq!(Layout::Convolution.restore(&arranged, &[1, 2, 3]), values);
        assert_eq!(Layout::Convolution.shape(&[1, 2, 3]), Ok(vec![1, 6]));
    }
}
