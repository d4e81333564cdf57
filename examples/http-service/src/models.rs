//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::ApiError;
use crate::response::to_json;
use crate::service::Service;

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: [Model<'a>; 1],
}

fn model(service: &Service) -> Model<'_> {
    Model { id: &service.config.model_name, object: "model", created: service.created, owned_by: "blockformer" }
}

fn answer(body: &impl Serialize) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], to_json(body)).into_response()
}

pub(crate) async fn list(State(service): State<Arc<Service>>) -> Response {
    answer(&List { object: "list", data: [model(&service)] })
}

pub(crate) async fn one(State(service): State<Arc<Service>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    match service.config.model_name == id {
        true => Ok(answer(&model(&service))),
        false => Err(ApiError::unknown_model(&id, &service.config.model_name)),
    }
}
