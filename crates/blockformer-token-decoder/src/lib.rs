//! Token decoders: the part of a Block Transformer that turns a context embedding into the tokens of one block
//! (Ho et al. 2024, section 2.4).
//!
//! A token decoder implements [`TokenDecoder`]. It sees nothing of the past but the context embedding, so blocks are
//! independent rows, and its cache holds no more than the expanded context and one block. [`PrefixDecoder`] is the
//! paper's main choice: the context embedding, expanded to a few positions, stands before the block's tokens;
//! [`SummationDecoder`] adds it to them;
//! [`CrossAttentionDecoder`] attends to it.
//! [`AnyTokenDecoder`] is the closed set that configurations choose from ([`TokenDecoderConfig`]).
//!
//! ```
//! use blockformer_nn::TransformerConfig;
//! use blockformer_token_decoder::{Expansion, PrefixConfig, TokenDecoder, TokenDecoderConfig, TokenDecoderSizes, TokenInput};
//! use burn::tensor::{Device, Distribution, Int, Tensor};
//!
//! let device = Device::flex();
//! let sizes =
//!     TokenDecoderSizes { vocab_size: 100, block_length: 4, n_embedding_tokens: 1, context_blocks: 1, d_context: 64 };
//! let transformer = TransformerConfig::gpt_neox(64, 2, 4);
//! let prefix = PrefixConfig { transformer, expansion: Expansion::Layer, expansion_ratio: 2, tied_embeddings: false };
//! let decoder = TokenDecoderConfig::Prefix(prefix).init(&sizes, &device);
//!
//! // Three blocks at once, each with the first three of its four tokens: four predictions a block.
//! let context = Tensor::<3>::random([3, 1, 64], Distribution::Default, &device);
//! let tokens = Tensor::<2, Int>::zeros([3, 3], &device);
//! let hidden = decoder.forward(TokenInput::start(context).with_ids(Some(tokens)), None);
//! assert_eq!(decoder.logits(hidden).dims(), [3, 4, 100]);
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod any;
mod cross_attention;
mod expansion;
mod prefix;
mod summation;
mod token_decoder;
mod vocabulary;

pub use any::{AnyTokenCache, AnyTokenDecoder, TokenDecoderConfig};
pub use cross_attention::{
    CrossAttentionCache, CrossAttentionConfig, CrossAttentionDecoder, CrossAttentionHeads, CrossAttentionLayer,
    RelativeBias,
};
pub use expansion::{ContextExpansion, Expansion};
pub use prefix::{PrefixConfig, PrefixDecoder};
pub use summation::{SummationCache, SummationConfig, SummationDecoder};
pub use token_decoder::{TokenCache, TokenDecoder, TokenDecoderSizes, TokenInput};
pub use vocabulary::Vocabulary;
