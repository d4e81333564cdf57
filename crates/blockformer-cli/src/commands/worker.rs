//! `blockformer worker`.

use std::io::Write;
use std::net::TcpListener;
use std::process::ExitCode;

use blockformer::worker::TOKEN_VARIABLE;
use clap::Args;

use crate::error::CliError;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Where to listen; port 0 takes a free one. The connection is not encrypted: others than this machine should reach
    /// it through a tunnel, or on a trusted network
    #[arg(long, default_value = "127.0.0.1:4000", value_name = "ADDRESS:PORT")]
    listen: String,
    /// The device to serve: cpu, cuda:0, wgpu, …
    #[arg(long, default_value = "cpu")]
    device: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let device = blockformer::device(&arguments.device)?;
    let refused = |source| CliError::Listen { address: arguments.listen.clone(), source };
    let listener = TcpListener::bind(&arguments.listen).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let token = std::env::var(TOKEN_VARIABLE).ok();
    if token.is_none() && !address.ip().is_loopback() {
        eprintln!("warning: whoever reaches {address} can compute here; set {TOKEN_VARIABLE} here and there");
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{} is served as remote:ws://{address}", arguments.device)
        .and_then(|()| stdout.flush())
        .map_err(|source| CliError::Stdout { source })?;
    drop(stdout);
    blockformer::worker::serve(device, listener, token.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
