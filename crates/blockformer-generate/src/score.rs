//! Asking a model about texts that are there already.

use blockformer_model::PromptError;
use burn::tensor::Device;

use crate::GenerateError;
use crate::language_model::to_host;
use crate::paged::{Blocks, PagedModel};
use crate::prompt::{AlignedPrompt, Alignment};
use crate::sampler::TokenLogprobs;

/// How likely a model finds a continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLikelihood {
    /// The sum of the tokens' log probabilities.
    pub total: f64,
    /// The log probability of each token.
    pub tokens: Vec<f32>,
    /// Whether every token is the likeliest in its place: greedy generation would give this continuation.
    pub greedy: bool,
}

/// The log-likelihood of each continuation behind its context, `(context, continuation)` in token ids, as generation
/// would see it: the context ends at a block boundary, its first block padded.
///
/// # Errors
/// [`GenerateError::Prompt`] for an empty or too long text or an id outside the vocabulary,
/// [`GenerateError::NothingToGenerate`] for an empty continuation, [`GenerateError::NotANumber`].
pub fn log_likelihoods<M: PagedModel>(
    model: &M,
    texts: &[(&[u32], &[u32])],
    device: &Device,
) -> Result<Vec<LogLikelihood>, GenerateError> {
    texts.iter().map(|(context, continuation)| log_likelihood(model, context, continuation, device)).collect()
}

fn log_likelihood<M: PagedModel>(
    model: &M,
    context: &[u32],
    continuation: &[u32],
    device: &Device,
) -> Result<LogLikelihood, GenerateError> {
    let layout = model.layout();
    if continuation.is_empty() {
        return Err(GenerateError::NothingToGenerate);
    }
    let prompt = AlignedPrompt::new(context, continuation.len(), Alignment::PadFirstBlock, &layout)?;
    layout.check_ids(0, continuation)?;
    let (mut ids, mut real) = (prompt.ids, prompt.real);
    let from = ids.len();
    ids.extend(continuation);
    let n = ids.len().next_multiple_of(layout.block_length);
    ids.resize(n, layout.pad_token_id);
    real.resize(n, true); // what follows the text cannot change a prediction before it
    let n_blocks = &[n / layout.block_length];
    let blocks = Blocks { ids: &ids, real: Some(&real), n_blocks, begin: true, device };
    let logits = to_host(model.teacher_forced(blocks, from));
    let (mut tokens, mut greedy) = (Vec::with_capacity(continuation.len()), true);
    for (logits, &token) in logits.chunks_exact(layout.vocab_size).zip(continuation) {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(GenerateError::NotANumber);
        }
        let logprobs = TokenLogprobs::new(logits, token, 1);
        greedy &= logprobs.top[0].0 == token;
        tokens.push(logprobs.chosen);
    }
    Ok(LogLikelihood { total: tokens.iter().copied().map(f64::from).sum(), tokens, greedy })
}

/// The context embedding of every block of a text, its first block padded: one vector a block (a token, for a vanilla
/// transformer). The last sums up the whole text, as far as the model needs it to go on.
///
/// # Errors
/// [`GenerateError::Prompt`] for an empty or too long text or an id outside the vocabulary.
pub fn embed<M: PagedModel>(model: &M, text: &[u32], device: &Device) -> Result<Vec<Vec<f32>>, GenerateError> {
    if text.is_empty() {
        return Err(PromptError::Empty { index: 0 }.into());
    }
    let layout = model.layout();
    let prompt = AlignedPrompt::new(text, 0, Alignment::PadFirstBlock, &layout)?;
    let n_blocks = &[prompt.ids.len() / layout.block_length];
    let blocks = Blocks { ids: &prompt.ids, real: Some(&prompt.real), n_blocks, begin: true, device };
    let embeddings = model.context_embeddings(blocks);
    let width = embeddings.dims()[1];
    Ok(to_host(embeddings).chunks_exact(width).map(<[f32]>::to_vec).collect())
}
