//! Answers as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream::unfold;

use crate::choice::Delta;
use crate::response::{Body, Head, to_json};
use crate::running::Running;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Text,
    Usage,
    Done,
    Over,
}

/// The messages of one answer.
struct Messages {
    head: Head,
    echo: VecDeque<Delta>,
    running: Running,
    include_usage: bool,
    stage: Stage,
}

/// An answer in parts, each a message of JSON, and `[DONE]` behind the last. An error on the way is a message of its own,
/// and the last. When the client goes away this is dropped, and with it the request.
pub(crate) fn stream(
    head: Head,
    echo: Vec<Delta>,
    running: Running,
    include_usage: bool,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let messages = Messages { head, echo: echo.into(), running, include_usage, stage: Stage::Text };
    let events = unfold(messages, |mut messages| async move {
        let message = messages.next().await?;
        Some((Ok(Event::default().data(message)), messages))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

impl Messages {
    async fn next(&mut self) -> Option<String> {
        if self.stage == Stage::Text {
            let delta = match self.echo.pop_front() {
                Some(delta) => Ok(Some(delta)),
                None => self.running.next().await,
            };
            match delta {
                Ok(Some(delta)) => return Some(self.part(delta)),
                Ok(None) => self.stage = if self.include_usage { Stage::Usage } else { Stage::Done },
                Err(error) => {
                    self.stage = Stage::Over;
                    return Some(error.to_json());
                }
            }
        }
        match self.stage {
            Stage::Usage => {
                self.stage = Stage::Done;
                let usage = Some(Some(self.running.usage().into()));
                Some(to_json(&Body { head: &self.head, choices: Vec::new(), usage }))
            }
            Stage::Done => {
                self.stage = Stage::Over;
                Some("[DONE]".into())
            }
            Stage::Text | Stage::Over => None,
        }
    }

    fn part(&self, delta: Delta) -> String {
        to_json(&Body { head: &self.head, choices: vec![delta.into()], usage: self.include_usage.then_some(None) })
    }
}
