//! The service as a program: see `README.md`.

mod arguments;
mod signals;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use blockformer::ServingModel;
use blockformer::generate::Engine;
use blockformer_http_service::{Service, serve};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use arguments::Arguments;

/// Burn's CPU backend allocates a tensor for every operation; mimalloc makes that several times faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    blockformer::keep_kernels(None)?;
    let device = blockformer::device(&arguments.device)?;
    let (config, model, tokenizer) = blockformer::open(arguments.model.as_deref(), &device)?;
    // Any `PagedModel` will do here; this one has kernels of its own on a CPU.
    let model = ServingModel::new(&config, model, &device)?;
    let mut engine = Engine::new(model, arguments.engine(&config, &device), &device)?;
    engine.record_ahead();
    let service = Arc::new(Service::new(engine, tokenizer, arguments.service(&config)));
    let runtime = Runtime::new()?;
    let ended = runtime.block_on(listen(arguments, service));
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn listen(arguments: &Arguments, service: Arc<Service>) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind((arguments.host.as_str(), arguments.port)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    serve(listener, service, signals::stop()).await?;
    Ok(())
}
