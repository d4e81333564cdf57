//! Uptraining: a Block Transformer that begins with the weights of a vanilla transformer (Ho et al. 2024, section 3.7).
//!
//! The layers of the vanilla model become those of the block decoder and of the token decoder, by a [`LayerMethod`].
//! Its token embeddings become the embedder's and the token decoder's. The embedder's projection starts as the mean, so
//! that a block's embedding is the mean of its tokens' embeddings, and the token decoder's expansion as the identity,
//! so that each position of the prefix is the context embedding. What is copied where is an [`UptrainingPlan`], a list
//! tensor by tensor; [`UptrainingPlan::apply`] carries it out. Training then goes on as with any model.
//!
//! ```
//! use blockformer_model::VanillaTransformerConfig;
//! use blockformer_nn::TransformerConfig;
//! use blockformer_train::uptraining::{LayerMethod, TargetSizes, UptrainingOptions, UptrainingPlan, target_config};
//! use burn::tensor::Device;
//!
//! let vanilla = VanillaTransformerConfig {
//!     vocab_size: 50,
//!     max_length: 64,
//!     eos_token_id: Some(0),
//!     tied_embeddings: true,
//!     transformer: TransformerConfig::llama(16, 4, 2),
//! };
//! let block = target_config(&vanilla, LayerMethod::Partition, &TargetSizes::default()).unwrap();
//! let device = Device::flex();
//! let plan = UptrainingPlan::new(&vanilla, &block, &UptrainingOptions::default(), &device).unwrap();
//! println!("{plan}");
//!
//! let vanilla = vanilla.init(&device).unwrap(); // or loaded
//! let model = plan.apply(&vanilla, block.init(&device).unwrap());
//! assert_eq!(model.block_decoder.transformer.layers.len(), 2);
//! ```

mod check;
mod error;
mod layers;
mod plan;
mod target;

pub use error::UptrainingError;
pub use layers::LayerMethod;
pub use plan::{PlannedTensor, TensorOrigin, UptrainingOptions, UptrainingPlan};
pub use target::{TargetSizes, target_config};
