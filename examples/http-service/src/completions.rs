//! `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use crate::choice::Delta;
use crate::error::ApiError;
use crate::request::{Asked, CompletionRequest};
use crate::response::{Body, ChoiceBody, Head, to_json};
use crate::running::Running;
use crate::service::{Phase, Service};
use crate::streaming::stream;

pub(crate) async fn completions(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    if service.phase() > Phase::Running {
        return Err(ApiError::stopping());
    }
    if !is_json(&headers) {
        return Err(ApiError::not_json());
    }
    let body = body.map_err(|rejection| ApiError::body(rejection.status(), rejection.body_text()))?;
    let asked = read(Arc::clone(&service), body).await?;
    let (head, echo) = (Head::new(&service), Echo::of(&asked));
    let (is_stream, include_usage) = (asked.stream, asked.include_usage);
    let running = Running::start(service, asked).await?;
    // The engine has taken the request now, so there are no more choices than it can hold.
    let echo = echo.deltas();
    if is_stream {
        return Ok(stream(head, echo, running, include_usage).into_response());
    }
    gather(&head, echo, running).await
}

/// Another site's page can make a browser send other types without being asked whether it may.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| {
        kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    })
}

/// Reads and tokenizes a request where that keeps nobody waiting.
async fn read(service: Arc<Service>, body: Bytes) -> Result<Asked, ApiError> {
    let work = tokio::task::spawn_blocking(move || CompletionRequest::parse(&body)?.prepare(&service));
    work.await.unwrap_or_else(|error| Err(ApiError::internal(format!("the request could not be read: {error}"))))
}

/// The prompts as the beginnings of their choices; none if that was not asked for.
struct Echo {
    prompts: Vec<String>,
    /// Choices of each.
    n: usize,
}

impl Echo {
    fn of(asked: &Asked) -> Self {
        let prompts = if asked.echo { asked.prompts.clone() } else { Vec::new() };
        Self { prompts, n: asked.requests.first().map_or(1, |request| request.n) }
    }

    fn deltas(&self) -> Vec<Delta> {
        let prompts = self.prompts.iter().enumerate();
        let deltas = prompts.flat_map(|(prompt, text)| {
            let choices = prompt * self.n..(prompt + 1) * self.n;
            choices.map(move |index| Delta { index, text: text.clone(), ..Delta::default() })
        });
        deltas.collect()
    }
}

/// The whole answer at once.
async fn gather(head: &Head, echo: Vec<Delta>, mut running: Running) -> Result<Response, ApiError> {
    let mut choices: Vec<ChoiceBody> = Vec::new();
    let mut add = |delta: Delta| {
        let index = delta.index;
        choices.resize_with(choices.len().max(index + 1), ChoiceBody::default);
        choices[index].add(delta);
    };
    echo.into_iter().for_each(&mut add);
    while let Some(delta) = running.next().await? {
        add(delta);
    }
    choices.retain(ChoiceBody::is_finished); // a beam search can find fewer than it was asked for
    let body = Body { head, choices, usage: Some(Some(running.usage().into())) };
    Ok(([(header::CONTENT_TYPE, "application/json")], to_json(&body)).into_response())
}
