//! The configuration of a stack of layers.

use blockformer_kv_cache::CacheConfig;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::{ConfigError, Layer, Norm, RotaryTable, Transformer};

/// The non-linearity of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// Exact GELU, `x · Φ(x)`.
    Gelu,
    /// GELU by the tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x · sigmoid(x)`, also called swish.
    Silu,
}

/// The normalisation before each sublayer and at the end of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NormKind {
    /// Layer normalisation with scale and shift.
    LayerNorm,
    /// Root-mean-square normalisation with scale.
    RmsNorm,
}

/// How attention and feed-forward network are added to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Residual {
    /// `x + attention(norm₁(x)) + feed_forward(norm₂(x))` (GPT-J, GPT-NeoX).
    Parallel,
    /// `y = x + attention(norm₁(x))`, then `y + feed_forward(norm₂(y))`.
    Sequential,
}

/// Where a sublayer's norm stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NormPosition {
    /// Before it, on a branch of the residual stream; the stack ends with a norm of its own.
    #[default]
    Pre,
    /// After it, on the residual stream itself (BERT, RoBERTa): `norm(x + sublayer(x))`. Always sequential.
    Post,
}

/// Rotary position embedding in its half-split form (GPT-NeoX, Llama).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotaryConfig {
    /// The share of each head's features that is rotated, in (0, 1]: the first `⌊fraction · head_dim⌋`.
    pub fraction: f64,
    /// The base of the geometric series of wavelengths.
    pub base: f64,
}

/// A stack of transformer layers: their sizes, style and initialisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Features of the residual stream.
    pub d_model: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads: `n_heads` for multi-head, fewer for grouped-query, 1 for multi-query attention.
    pub n_kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Inner features of the feed-forward network.
    pub d_ff: usize,
    /// Its non-linearity.
    pub activation: Activation,
    /// Whether the feed-forward network is gated (`down(act(gate(x)) · up(x))`; with SiLU this is SwiGLU).
    pub gated: bool,
    /// The normalisation.
    pub norm: NormKind,
    /// The normalisation's epsilon.
    pub norm_eps: f64,
    /// Where the norms stand.
    #[serde(default)]
    pub norm_position: NormPosition,
    /// How sublayers are added.
    pub residual: Residual,
    /// The position embedding; without one the stack knows positions only by causality.
    pub rotary: Option<RotaryConfig>,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// A bias on the attention's output projection.
    pub output_bias: bool,
    /// Biases in the feed-forward network.
    pub feed_forward_bias: bool,
    /// Positions the rotary tables are made for.
    pub max_positions: usize,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
}

impl TransformerConfig {
    /// GPT-NeoX layers as in Pythia and the paper: layer norm (eps 1e-5), parallel residual, rotary embedding on a
    /// quarter of each head, exact GELU, biases everywhere, `d_ff = 4 · d_model`, 2048 positions.
    pub fn gpt_neox(d_model: usize, n_layers: usize, n_heads: usize) -> Self {
        Self {
            d_model,
            n_layers,
            n_heads,
            n_kv_heads: n_heads,
            head_dim: d_model / n_heads.max(1),
            d_ff: 4 * d_model,
            activation: Activation::Gelu,
            gated: false,
            norm: NormKind::LayerNorm,
            norm_eps: 1e-5,
            norm_position: NormPosition::Pre,
            residual: Residual::Parallel,
            rotary: Some(RotaryConfig { fraction: 0.25, base: 10_000.0 }),
            qkv_bias: true,
            output_bias: true,
            feed_forward_bias: true,
            max_positions: 2048,
            initializer_range: 0.02,
        }
    }

    /// Llama layers: RMS norm (eps 1e-5), sequential residual, full rotary embedding, SwiGLU, no biases,
    /// `d_ff = 8/3 · d_model` rounded up to a multiple of 32, 2048 positions.
    pub fn llama(d_model: usize, n_layers: usize, n_heads: usize) -> Self {
        Self {
            d_ff: (8 * d_model).div_ceil(3).next_multiple_of(32),
            activation: Activation::Silu,
            gated: true,
            norm: NormKind::RmsNorm,
            residual: Residual::Sequential,
            rotary: Some(RotaryConfig { fraction: 1.0, base: 10_000.0 }),
            qkv_bias: false,
            output_bias: false,
            feed_forward_bias: false,
            ..Self::gpt_neox(d_model, n_layers, n_heads)
        }
    }

    /// RoBERTa layers: post-norm (layer norm, eps 1e-5), no rotary embedding, exact GELU, biases everywhere,
    /// `d_ff = 4 · d_model`.
    pub fn roberta(d_model: usize, n_layers: usize, n_heads: usize) -> Self {
        let (norm_position, residual) = (NormPosition::Post, Residual::Sequential);
        Self { norm_position, residual, rotary: None, ..Self::gpt_neox(d_model, n_layers, n_heads) }
    }

    /// The same with another number of key/value heads (grouped-query attention).
    pub fn with_n_kv_heads(mut self, n_kv_heads: usize) -> Self {
        self.n_kv_heads = n_kv_heads;
        self
    }

    /// The same with rotary tables for another number of positions.
    pub fn with_max_positions(mut self, max_positions: usize) -> Self {
        self.max_positions = max_positions;
        self
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// The [`ConfigError`] that names the first field that does not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::positive("d_model", self.d_model)?;
        ConfigError::positive("n_layers", self.n_layers)?;
        ConfigError::positive("n_heads", self.n_heads)?;
        ConfigError::positive("n_kv_heads", self.n_kv_heads)?;
        ConfigError::positive("head_dim", self.head_dim)?;
        ConfigError::positive("d_ff", self.d_ff)?;
        ConfigError::positive("max_positions", self.max_positions)?;
        let sizes = [
            ("d_model", self.d_model),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("d_ff", self.d_ff),
            ("max_positions", self.max_positions),
        ];
        sizes.into_iter().try_for_each(|(field, value)| ConfigError::bounded(field, value))?;
        ConfigError::in_range("norm_eps", self.norm_eps, 0.0, 1.0)?;
        ConfigError::in_range("initializer_range", self.initializer_range, 0.0, 100.0)?;
        ConfigError::multiple("n_heads", self.n_heads, "n_kv_heads", self.n_kv_heads)?;
        if let Some(rotary) = self.rotary {
            ConfigError::in_range("rotary.fraction", rotary.fraction, 0.0, 1.0)?;
            ConfigError::in_range("rotary.base", rotary.base, 1.0, 1e12)?;
            ConfigError::positive("rotary features", self.rotary_dim())?;
            ConfigError::multiple("rotary features", self.rotary_dim(), "2", 2)?;
        }
        Ok(())
    }

    /// Checks that the rotary tables, if there are any, reach `needed` positions; `field` and `what` say in an error
    /// which tables, and what needs so many.
    ///
    /// # Errors
    /// [`ConfigError::Mismatch`].
    pub fn check_positions(&self, field: &'static str, needed: usize, what: &'static str) -> Result<(), ConfigError> {
        if self.rotary.is_some() && self.max_positions < needed {
            let value = self.max_positions;
            return Err(ConfigError::Mismatch { field, value, expected_field: what, expected: needed });
        }
        Ok(())
    }

    /// The size of the stack's cache for `batch` sequences of up to `capacity` positions.
    pub fn cache_config(&self, batch: usize, capacity: usize) -> CacheConfig {
        let Self { n_layers, n_kv_heads, head_dim, .. } = *self;
        CacheConfig { n_layers, batch, n_kv_heads, capacity, head_dim }
    }

    /// Features of each head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        self.rotary.map_or(0, |rotary| (rotary.fraction * self.head_dim as f64) as usize)
    }

    /// Initialises the stack: weights from a normal distribution of standard deviation `initializer_range`, biases
    /// zero, norms one.
    ///
    /// # Panics
    /// If [`validate`](Self::validate) would return an error.
    pub fn init(&self, device: &Device) -> Transformer {
        if let Err(error) = self.validate() {
            panic!("invalid transformer configuration: {error}");
        }
        let final_norm = self.norm_position == NormPosition::Pre;
        Transformer {
            layers: (0..self.n_layers).map(|_| Layer::new(self, device)).collect(),
            final_norm: final_norm.then(|| Norm::new(self.norm, self.d_model, self.norm_eps, device)),
            rotary: self.rotary.map(|r| RotaryTable::new(self.rotary_dim(), r.base, self.max_positions, device)),
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            d_model: self.d_model,
            norm_epsilon: self.norm_eps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let config = TransformerConfig::gpt_neox(64, 2, 4).with_n_kv_heads(3);
        let message = config.validate().unwrap_err().to_string();
        assert_eq!(message, "n_heads is 4, which is not a multiple of n_kv_heads (3)");
        let config = TransformerConfig { n_layers: 0, ..TransformerConfig::llama(64, 2, 4) };
        assert_eq!(config.validate(), Err(ConfigError::Zero { field: "n_layers" }));
        let rotary = Some(RotaryConfig { fraction: 1.5, base: 10_000.0 });
        let config = TransformerConfig { rotary, ..TransformerConfig::llama(64, 2, 4) };
        assert!(matches!(config.validate(), Err(ConfigError::OutOfRange { field: "rotary.fraction", .. })));
    }

    #[test]
    fn configurations_survive_json_and_unknown_fields_do_not() {
        let config = TransformerConfig::llama(64, 2, 4);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<TransformerConfig>(&json).unwrap(), config);
        let spoiled = json.replacen("\"d_model\"", "\"d_modle\"", 1);
        assert!(serde_json::from_str::<TransformerConfig>(&spoiled).unwrap_err().to_string().contains("d_modle"));
    }
}
