//! A client's request while it is served.

use std::sync::Arc;

use blockformer::generate::{Event, Usage};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll, select_all};

use crate::choice::{Choice, Delta};
use crate::error::ApiError;
use crate::request::Asked;
use crate::service::{Phase, Service};

/// The events of all prompts of a request. Dropping it ends them.
pub(crate) struct Running {
    service: Arc<Service>,
    /// Each with the number of its prompt.
    events: SelectAll<BoxStream<'static, (usize, Event)>>,
    /// Those of the first prompt, those of the second, and so on.
    choices: Vec<Choice>,
    /// Choices a prompt.
    n: usize,
    usage: Usage,
}

impl Running {
    /// Hands the prompts to the engine and waits until it has taken all of them.
    ///
    /// # Errors
    /// 400 for what can never be served, 429 if too many requests wait, 503 if the engine has stopped. Nothing of the
    /// request is left running then.
    pub(crate) async fn start(service: Arc<Service>, asked: Asked) -> Result<Self, ApiError> {
        let n = asked.requests.first().map_or(1, |request| request.n);
        let (mut streams, mut choices) = (Vec::new(), Vec::new());
        for (prompt, (request, text)) in asked.requests.into_iter().zip(&asked.prompts).enumerate() {
            let logprobs = request.logprobs.is_some();
            let indices = prompt * n..(prompt + 1) * n;
            streams.push(service.engine.submit(request).map_err(|error| ApiError::refused(error, prompt))?);
            choices.extend(indices.map(|index| Choice::new(index, &service.tokenizer, text, logprobs)));
        }
        for (prompt, stream) in streams.iter_mut().enumerate() {
            stream.accepted().await.map_err(|error| ApiError::refused(error, prompt))?;
        }
        let numbered = |(prompt, stream)| StreamExt::map(stream, move |event| (prompt, event)).boxed();
        let events = select_all(streams.into_iter().enumerate().map(numbered));
        Ok(Self { service, events, choices, n, usage: Usage::default() })
    }

    /// What is added to one of the choices next; nothing at the end.
    ///
    /// # Errors
    /// The error of the first prompt that fails, 503 if the service's time is over. The request has ended then.
    pub(crate) async fn next(&mut self) -> Result<Option<Delta>, ApiError> {
        loop {
            let event = tokio::select! {
                event = self.events.next() => event,
                () = self.service.reached(Phase::Over) => return Err(ApiError::stopping()),
            };
            let Some((prompt, event)) = event else { return Ok(None) };
            let undecodable = |error: blockformer::data::DataError| ApiError::internal(error.to_string());
            match event {
                Event::Token(token) => {
                    let choice = &mut self.choices[prompt * self.n + token.sample];
                    if let Some(delta) = choice.token(token).map_err(undecodable)? {
                        return Ok(Some(delta));
                    }
                }
                Event::Finished { sample, reason, text, .. } => {
                    let choice = &mut self.choices[prompt * self.n + sample];
                    return choice.finish(text, reason).map(Some).map_err(undecodable);
                }
                Event::Done(usage) => {
                    self.usage.prompt_tokens += usage.prompt_tokens;
                    self.usage.reused_tokens += usage.reused_tokens;
                    self.usage.generated_tokens += usage.generated_tokens;
                }
                Event::Failed(error) => return Err(ApiError::failed(error, prompt)),
            }
        }
    }

    /// What the request has taken, at its end.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }
}
