//! Errors as clients see them.

use axum::body::Body;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use blockformer::data::DataError;
use blockformer::generate::GenerateError;
use blockformer::model::PromptError;
use serde::Serialize;

use crate::response::to_json;

/// An error in the shape of the OpenAI API: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug, Serialize)]
pub(crate) struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: &'a ApiError,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        Self { status, message: message.into(), kind, param: None, code: None }
    }

    /// The request is wrong in `param`, or as a whole.
    pub(crate) fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        Self { param: param.map(String::from), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// The body could not be read, or is too large.
    pub(crate) fn body(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, message)
    }

    pub(crate) fn not_json() -> Self {
        let message = "the body must be JSON, and the header Content-Type must say so: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    pub(crate) fn unknown_model(asked: &str, served: &str) -> Self {
        let message = format!("there is no model {asked:?} here; this service has {served:?}");
        let error = Self::new(StatusCode::NOT_FOUND, message);
        Self { param: Some("model".into()), code: Some("model_not_found"), ..error }
    }

    pub(crate) fn unknown_url(method: &Method, uri: &Uri) -> Self {
        let error = Self::new(StatusCode::NOT_FOUND, format!("unknown request: {method} {}", uri.path()));
        Self { code: Some("unknown_url"), ..error }
    }

    pub(crate) fn wrong_method(method: &Method, uri: &Uri) -> Self {
        let message = format!("{} does not answer to {method}", uri.path());
        Self { code: Some("method_not_allowed"), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, message) }
    }

    pub(crate) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the service is stopping")
    }

    pub(crate) fn engine_gone() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the engine has stopped")
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Text that the tokenizer refuses.
    pub(crate) fn text(error: &DataError) -> Self {
        Self::invalid(Some("prompt"), error.to_string())
    }

    /// The engine does not take prompt `index` of a request.
    pub(crate) fn refused(error: GenerateError, index: usize) -> Self {
        match error {
            GenerateError::Stopped => Self::engine_gone(),
            error => Self::failed(error, index),
        }
    }

    /// Prompt `index` of a request failed.
    pub(crate) fn failed(error: GenerateError, index: usize) -> Self {
        let message = error.to_string();
        match error {
            GenerateError::Prompt(error) => Self::prompt(error, index),
            GenerateError::NothingToGenerate => Self::invalid(Some("max_tokens"), message),
            GenerateError::Sampling { option, .. } | GenerateError::OutOfVocabulary { option, .. } => {
                Self::invalid(Some(field(option)), message)
            }
            GenerateError::Contradiction { .. } | GenerateError::NothingAllowed => Self::invalid(None, message),
            GenerateError::Budget { .. } | GenerateError::TooWide { .. } => Self::invalid(None, message),
            GenerateError::Busy { .. } => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, message);
                Self { code: Some("rate_limit_exceeded"), ..error }
            }
            GenerateError::CacheLost { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, message),
            _ => Self::internal(message),
        }
    }

    /// The engine is given one prompt at a time, so it does not know which one it is.
    fn prompt(mut error: PromptError, at: usize) -> Self {
        let code = matches!(error, PromptError::TooLong { .. }).then_some("context_length_exceeded");
        if let PromptError::Empty { index }
        | PromptError::TooLong { index, .. }
        | PromptError::OutOfVocabulary { index, .. } = &mut error
        {
            *index = at;
        }
        Self { code, ..Self::invalid(Some("prompt"), error.to_string()) }
    }

    /// The error as a body, or as the last message of a stream.
    pub(crate) fn to_json(&self) -> String {
        to_json(&Envelope { error: self })
    }
}

/// The request's field of an engine's option.
fn field(option: &str) -> &str {
    match option {
        "stop_tokens" => "stop_token_ids",
        "stop_strings" => "stop",
        option => option,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}
