//! What is copied where.

use std::collections::BTreeSet;
use std::fmt;

use blockformer_embedder::AnyEmbedder;
use blockformer_model::{BlockTransformer, BlockTransformerConfig, VanillaTransformer, VanillaTransformerConfig};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData, s};
use serde::{Deserialize, Serialize};

use super::check;
use super::layers::LayerSources;
use super::{LayerMethod, UptrainingError};
use crate::named_parameters::{self as parameters, Value};

const EMBEDDER_TABLE: &str = "embedder.embedding.weight";
const TOKEN_TABLE: &str = "token_decoder.vocabulary.embedding.weight";
const TOKEN_OUTPUT: &str = "token_decoder.vocabulary.output.weight";
const VANILLA_TABLE: &str = "vocabulary.embedding.weight";
const VANILLA_OUTPUT: &str = "vocabulary.output.weight";
/// Token embeddings that the block decoder reads at once.
const CHUNK: usize = 4096;

/// How a Block Transformer begins with the weights of a vanilla transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UptrainingOptions {
    /// Which layers become which.
    pub layers: LayerMethod,
    /// Whether the embedder's projection starts as the mean of token embeddings; else with random weights.
    pub mean_projection: bool,
    /// Whether the expansion starts as the identity; else with random weights.
    pub identity_expansion: bool,
    /// Whether the token decoder's token embeddings are what the block decoder makes of each token's embedding, a
    /// block by itself; else the vanilla transformer's.
    pub compute_token_embeddings: bool,
}

impl Default for UptrainingOptions {
    /// The paper's: partition, mean and identity.
    fn default() -> Self {
        Self {
            layers: LayerMethod::Partition,
            mean_projection: true,
            identity_expansion: true,
            compute_token_embeddings: false,
        }
    }
}

/// Where a parameter's first value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorOrigin {
    /// It is a copy of this parameter of the vanilla transformer.
    Copied {
        /// That parameter's name.
        from: String,
    },
    /// The projection that takes the mean of the token embeddings of a block.
    Mean,
    /// The expansion that repeats the context embedding.
    Identity,
    /// Nothing but zeros: the bias of a mean or an identity.
    Zeros,
    /// What the block decoder makes of each row of the embedder's table.
    BlockDecoder,
    /// The value it has in a new model: random weights, norms of one.
    Initial,
}

impl fmt::Display for TensorOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copied { from } => write!(f, "{from}"),
            Self::Mean => write!(f, "(mean of the block's tokens)"),
            Self::Identity => write!(f, "(identity)"),
            Self::Zeros => write!(f, "(zeros)"),
            Self::BlockDecoder => write!(f, "(computed by the block decoder)"),
            Self::Initial => write!(f, "(as initialised)"),
        }
    }
}

/// A parameter of the Block Transformer and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name in a weight file.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Where its value comes from.
    pub origin: TensorOrigin,
}

/// What is copied where, tensor by tensor. Its display is a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UptrainingPlan {
    tensors: Vec<PlannedTensor>,
    unused: Vec<String>,
}

impl UptrainingPlan {
    /// The plan for a pair of configurations. `device` is only where models without values are laid out to list their
    /// parameters.
    ///
    /// The block decoder's final norm is new in any case: the vanilla transformer's belongs to its last layer, whose
    /// output the block decoder does not give.
    ///
    /// # Errors
    /// An [`UptrainingError`] naming what does not go together.
    pub fn new(
        vanilla: &VanillaTransformerConfig,
        block: &BlockTransformerConfig,
        options: &UptrainingOptions,
        device: &Device,
    ) -> Result<Self, UptrainingError> {
        let layers = check::configs(vanilla, block, options)?;
        let available = parameters::shapes(&vanilla.init(device)?);
        let rules = Rules { vanilla, block, options, layers };
        let tensors = parameters::shapes(&block.init(device)?).into_iter().map(|parameter| {
            let shape = parameter.shape_in_file();
            let origin = rules.origin(&parameter.name);
            if let TensorOrigin::Copied { from } = &origin {
                let source = available.iter().find(|source| source.name == *from);
                if source.is_none_or(|source| source.shape_in_file() != shape) {
                    return Err(UptrainingError::NoCounterpart { name: parameter.name, shape });
                }
            }
            Ok(PlannedTensor { name: parameter.name, shape, origin })
        });
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        let used: BTreeSet<&str> = tensors.iter().filter_map(|tensor| source(&tensor.origin)).collect();
        let unused = available.into_iter().map(|source| source.name).filter(|name| !used.contains(name.as_str()));
        Ok(Self { unused: unused.collect(), tensors })
    }

    /// Every parameter of the Block Transformer, in the order of the model.
    pub fn tensors(&self) -> &[PlannedTensor] {
        &self.tensors
    }

    /// The vanilla transformer's parameters that are copied nowhere.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// Gives `block` its first weights. Both must be of the plan's configurations; `block` may be on an autodiff
    /// device.
    ///
    /// # Panics
    /// If a model is not of the plan's configuration.
    pub fn apply(&self, vanilla: &VanillaTransformer, block: BlockTransformer) -> BlockTransformer {
        let sources = parameters::values(vanilla);
        let device = vanilla.vocabulary.embedding.weight.lazy_device();
        let shapes = parameters::shapes(&block);
        let shape = |name: &str| match shapes.iter().find(|parameter| parameter.name == name) {
            Some(parameter) => [parameter.in_memory[0], parameter.in_memory[1]],
            None => panic!("{name} is not a parameter of the model"),
        };
        let value = |name: &str| {
            let planned = self.tensors.iter().find(|tensor| tensor.name == name);
            let planned = planned.unwrap_or_else(|| panic!("{name} is not in the plan"));
            match &planned.origin {
                TensorOrigin::Copied { from } => {
                    let value = sources.get(from).unwrap_or_else(|| panic!("{from} is not in the vanilla transformer"));
                    // The table of a tied model as the output projection, which is a linear map.
                    let turned = name == TOKEN_OUTPUT && from == VANILLA_TABLE;
                    Some(if turned { value.clone().transposed() } else { value.clone() })
                }
                TensorOrigin::Mean => Some(mean(shape(name), &device)),
                TensorOrigin::Identity => Some(identity(shape(name), &device)),
                TensorOrigin::Zeros => Some(Value::Vector(Tensor::zeros([planned.shape[0]], &device))),
                TensorOrigin::BlockDecoder | TensorOrigin::Initial => None,
            }
        };
        let block = parameters::replace(block, value);
        if self.tensors.iter().all(|tensor| tensor.origin != TensorOrigin::BlockDecoder) {
            return block;
        }
        let table = Value::Matrix(read_by_block_decoder(&block.valid()));
        parameters::replace(block, |name| (name == TOKEN_TABLE).then(|| table.clone()))
    }
}

/// A linear map `[n · d, d]` to the mean of `n` joined vectors.
fn mean([d_input, d_output]: [usize; 2], device: &Device) -> Value {
    let share = d_output as f32 / d_input as f32;
    let values = (0..d_input * d_output).map(|i| if i / d_output % d_output == i % d_output { share } else { 0.0 });
    Value::Matrix(Tensor::from_data(TensorData::new(values.collect::<Vec<_>>(), [d_input, d_output]), device))
}

/// A linear map `[d, n · d]` to `n` copies of a vector.
fn identity([d_input, d_output]: [usize; 2], device: &Device) -> Value {
    let values = (0..d_input * d_output).map(|i| f32::from(u8::from(i % d_output % d_input == i / d_output)));
    Value::Matrix(Tensor::from_data(TensorData::new(values.collect::<Vec<_>>(), [d_input, d_output]), device))
}

/// The context embedding of each token, read as a block by itself: `[vocab_size, d_model]`.
fn read_by_block_decoder(block: &BlockTransformer) -> Tensor<2> {
    let AnyEmbedder::Lookup(embedder) = &block.embedder else { panic!("the plan wants a lookup embedder") };
    let table = embedder.embedding.weight.val();
    let [vocab_size, d_model] = table.dims();
    let parts = (0..vocab_size).step_by(CHUNK).map(|start| {
        let end = (start + CHUNK).min(vocab_size);
        let blocks = table.clone().slice(s![start..end, ..]).reshape([end - start, 1, 1, d_model]);
        block.block_decoder.forward(blocks, None, None).reshape([end - start, d_model])
    });
    Tensor::cat(parts.collect(), 0)
}

fn source(origin: &TensorOrigin) -> Option<&str> {
    match origin {
        TensorOrigin::Copied { from } => Some(from),
        _ => None,
    }
}

/// Says for each parameter where it comes from.
struct Rules<'a> {
    vanilla: &'a VanillaTransformerConfig,
    block: &'a BlockTransformerConfig,
    options: &'a UptrainingOptions,
    layers: LayerSources,
}

impl Rules<'_> {
    fn origin(&self, name: &str) -> TensorOrigin {
        let copied = |from: &str| TensorOrigin::Copied { from: from.into() };
        let chosen = |choice, origin| if choice { origin } else { TensorOrigin::Initial };
        match name {
            EMBEDDER_TABLE => return chosen(self.embeds_as_vanilla(), copied(VANILLA_TABLE)),
            "embedder.projection.layer.weight" => return chosen(self.options.mean_projection, TensorOrigin::Mean),
            "embedder.projection.layer.bias" => return chosen(self.options.mean_projection, TensorOrigin::Zeros),
            "token_decoder.expansion.layer.weight" => {
                return chosen(self.options.identity_expansion, TensorOrigin::Identity);
            }
            "token_decoder.expansion.layer.bias" => {
                return chosen(self.options.identity_expansion, TensorOrigin::Zeros);
            }
            TOKEN_TABLE if self.options.compute_token_embeddings => return TensorOrigin::BlockDecoder,
            TOKEN_TABLE => return copied(VANILLA_TABLE),
            TOKEN_OUTPUT if self.vanilla.tied_embeddings => return copied(VANILLA_TABLE),
            TOKEN_OUTPUT => return copied(VANILLA_OUTPUT),
            _ => {}
        }
        if let Some(rest) = name.strip_prefix("block_decoder.transformer.layers.") {
            return layer(rest, &self.layers.block);
        }
        if let Some(rest) = name.strip_prefix("token_decoder.transformer.layers.") {
            return layer(rest, &self.layers.token);
        }
        match name.strip_prefix("token_decoder.transformer.final_norm.") {
            Some(rest) => copied(&format!("transformer.final_norm.{rest}")),
            None => TensorOrigin::Initial,
        }
    }

    /// Whether the embedder looks tokens up in a table of the vanilla transformer's width.
    fn embeds_as_vanilla(&self) -> bool {
        check::lookup_of_width(&self.block.embedder, self.vanilla.transformer.d_model)
    }
}

/// The origin of a parameter of a layer; `rest` begins with the layer's number.
fn layer(rest: &str, sources: &[usize]) -> TensorOrigin {
    let parsed = rest.split_once('.').and_then(|(index, rest)| Some((index.parse::<usize>().ok()?, rest)));
    match parsed.and_then(|(index, rest)| Some((sources.get(index)?, rest))) {
        Some((source, rest)) => TensorOrigin::Copied { from: format!("transformer.layers.{source}.{rest}") },
        None => TensorOrigin::Initial,
    }
}

impl fmt::Display for UptrainingPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shapes: Vec<String> = self.tensors.iter().map(|tensor| format!("{:?}", tensor.shape)).collect();
        let name_width = self.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
        let shape_width = shapes.iter().map(String::len).max().unwrap_or(0);
        writeln!(f, "{:name_width$}  {:shape_width$}  from the vanilla transformer", "tensor", "shape")?;
        for (tensor, shape) in self.tensors.iter().zip(shapes) {
            writeln!(f, "{:name_width$}  {shape:shape_width$}  {}", tensor.name, tensor.origin)?;
        }
        let copied = self.tensors.iter().filter(|tensor| source(&tensor.origin).is_some()).count();
        writeln!(
            f,
            "{copied} of {} tensors are copies; {} of the vanilla transformer are not used",
            self.tensors.len(),
            self.unused.len()
        )?;
        self.unused.iter().try_for_each(|name| writeln!(f, "  {name}"))
    }
}
