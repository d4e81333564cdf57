//! What a client asks for, and what the engine is asked for.

use std::collections::BTreeMap;

use blockformer::generate::{Request, Sampling};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::error::Category;

use crate::error::ApiError;
use crate::prompt::{Prompt, TokenizedPrompt};
use crate::service::Service;

/// Tokens of an answer, where a request does not say how many.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Texts that may end an answer.
const MAX_STOPS: usize = 4;
/// Tokens that may have a bias, or end an answer: each of them is looked at with every token that is drawn.
const MAX_NAMED_TOKENS: usize = 1024;
/// Likeliest tokens that are listed at most.
const MAX_LOGPROBS: usize = 20;

/// The body of `POST /v1/completions`. A field that is left out, or null, has its default.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompletionRequest {
    model: Option<String>,
    prompt: Option<Prompt>,
    suffix: Option<IgnoredAny>,
    max_tokens: Option<usize>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    n: Option<usize>,
    best_of: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<usize>,
    echo: Option<bool>,
    stop: Option<Stop>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    #[serde(rename = "user")]
    _user: Option<IgnoredAny>,
    // Not in the OpenAI API.
    top_k: Option<usize>,
    min_p: Option<f64>,
    typical_p: Option<f64>,
    repetition_penalty: Option<f64>,
    beams: Option<usize>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    /// Padding against eavesdroppers, which is not done here.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

impl Stop {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(stop) => vec![stop],
            Self::Several(stops) => stops,
        }
    }
}

/// A request that the service can try to serve.
#[derive(Debug)]
pub(crate) struct Asked {
    /// One for each prompt.
    pub(crate) requests: Vec<Request>,
    /// The texts of the prompts.
    pub(crate) prompts: Vec<String>,
    pub(crate) echo: bool,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

impl CompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 that names the field that is wrong.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let param = (path != ".").then_some(path.as_str());
            match (error.inner().classify(), param) {
                (Category::Data, Some(field)) => ApiError::invalid(param, format!("{field}: {}", error.inner())),
                (Category::Data, None) => ApiError::invalid(None, error.inner().to_string()),
                _ => ApiError::invalid(None, format!("the body is not JSON: {}", error.inner())),
            }
        })?;
        json.end().map_err(|error| ApiError::invalid(None, format!("the body is not JSON: {error}")))?;
        Ok(parsed)
    }

    /// What the engine is asked for: a request for each prompt.
    ///
    /// # Errors
    /// 404 for another model, 400 for what contradicts itself or is not supported.
    pub(crate) fn prepare(mut self, service: &Service) -> Result<Asked, ApiError> {
        let served = &service.config.model_name;
        if let Some(model) = self.model.as_ref().filter(|model| *model != served) {
            return Err(ApiError::unknown_model(model, served));
        }
        self.check()?;
        let prompts = self.prompts(service)?;
        let (echo, stream) = (self.echo.unwrap_or(false), self.stream.unwrap_or(false));
        let include_usage = self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
        let template = self.template(service.config.eos_token_id)?;
        let mut requests = Vec::with_capacity(prompts.len());
        let mut texts = Vec::with_capacity(prompts.len());
        for TokenizedPrompt { ids, text } in prompts {
            let mut request = Request { prompt: ids, ..template.clone() };
            // Without a seed, every prompt has random numbers of its own.
            request.sampling.seed = self.seed.map_or_else(rand::random, i64::cast_unsigned);
            requests.push(request);
            texts.push(text);
        }
        Ok(Asked { requests, prompts: texts, echo, stream, include_usage })
    }

    /// What the engine does not see or does not know under these names.
    fn check(&self) -> Result<(), ApiError> {
        let refuse = |param, message: &str| Err(ApiError::invalid(Some(param), message));
        let n = self.n.unwrap_or(1);
        let ranked = self.beams.is_some() || self.best_of.is_some_and(|best_of| best_of > n);
        let stream = self.stream.unwrap_or(false);
        if self.suffix.is_some() {
            return refuse(
                "suffix",
                "suffix is not supported: the model writes on from a prompt, it does not fill gaps",
            );
        }
        if self.max_tokens == Some(0) {
            return refuse("max_tokens", "max_tokens is 0: ask for at least one");
        }
        if stream && ranked {
            let param = if self.beams.is_some() { "beams" } else { "best_of" };
            return refuse(param, "answers that are ranked cannot be streamed: leave out stream, best_of and beams");
        }
        if self.stream_options.is_some() && !stream {
            return refuse("stream_options", "stream_options are for streams: set stream to true");
        }
        let named = [
            ("logit_bias", self.logit_bias.as_ref().map_or(0, BTreeMap::len)),
            ("stop_token_ids", self.stop_token_ids.as_ref().map_or(0, Vec::len)),
        ];
        if let Some((param, n)) = named.into_iter().find(|(_, n)| *n > MAX_NAMED_TOKENS) {
            return refuse(param, &format!("{param} names {n} tokens, more than {MAX_NAMED_TOKENS}"));
        }
        if self.logprobs.is_some_and(|n| n > MAX_LOGPROBS) {
            return refuse("logprobs", &format!("logprobs is more than {MAX_LOGPROBS}"));
        }
        if self.logprobs.is_some() && self.echo.unwrap_or(false) {
            return refuse("logprobs", "echo and logprobs: the log probabilities of a prompt are not computed here");
        }
        Ok(())
    }

    fn prompts(&mut self, service: &Service) -> Result<Vec<TokenizedPrompt>, ApiError> {
        let refuse = |message: &str| Err(ApiError::invalid(Some("prompt"), message));
        let prompt = match (self.prompt.take(), service.config.eos_token_id) {
            (Some(prompt), _) => prompt,
            // As the beginning of a new document.
            (None, Some(eos)) => Prompt::Tokens(vec![eos]),
            (None, None) => return refuse("there is no prompt, and the model has no token to begin a document with"),
        };
        match prompt.len() {
            0 => refuse("prompt is an empty array: give at least one"),
            n if n > service.config.max_prompts => {
                refuse(&format!("{n} prompts in one request, this service takes {}", service.config.max_prompts))
            }
            _ => prompt.tokenize(&service.tokenizer),
        }
    }

    /// A request without its prompt and seed.
    fn template(&mut self, eos: Option<u32>) -> Result<Request, ApiError> {
        let stops = self.stop.take().map_or_else(Vec::new, Stop::into_vec);
        if stops.len() > MAX_STOPS || stops.iter().any(String::is_empty) {
            return Err(ApiError::invalid(Some("stop"), format!("stop is up to {MAX_STOPS} texts that are not empty")));
        }
        let eos = eos.filter(|_| !self.ignore_eos.unwrap_or(false));
        let stop_tokens: Vec<u32> = self.stop_token_ids.take().unwrap_or_default().into_iter().chain(eos).collect();
        Ok(Request {
            max_new_tokens: self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
            sampling: self.sampling()?,
            stop_tokens,
            stop_strings: stops,
            logprobs: self.logprobs,
            n: self.n.unwrap_or(1),
            best_of: self.best_of,
            beams: self.beams,
            ..Request::new([])
        })
    }

    fn sampling(&mut self) -> Result<Sampling, ApiError> {
        let default = Sampling { temperature: 1.0, ..Sampling::default() };
        Ok(Sampling {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            logit_bias: token_biases(self.logit_bias.take().unwrap_or_default())?,
            ..default
        })
    }
}

/// JSON has token ids as strings here.
fn token_biases(biases: BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, ApiError> {
    let bias = |(token, bias): (String, f32)| match token.parse() {
        Ok(id) => Ok((id, bias)),
        Err(_) => Err(ApiError::invalid(Some("logit_bias"), format!("logit_bias: {token:?} is not a token id"))),
    };
    biases.into_iter().map(bias).collect()
}
