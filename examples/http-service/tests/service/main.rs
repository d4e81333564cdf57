//! The service over a socket, as clients see it.

mod answers;
mod client;
mod engines;
mod errors;
mod life;
mod logprobs;
mod program;
mod streams;
