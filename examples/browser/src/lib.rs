//! The bundled model in a web page.
//!
//! [`Session`] is what a page needs of a model: it is opened from the bytes of the model's files, continues a prompt
//! block by block, and says where the boundaries of the blocks are. Nothing in it knows a browser. For the target
//! `wasm32-unknown-unknown` it is exported to JavaScript as the class `BrowserModel`; the page in `web/` runs that in a
//! worker. `scripts/build-browser.sh` puts all of it together.

mod any;
#[cfg(target_arch = "wasm32")]
mod browser;
mod error;
mod options;
mod session;

pub use any::AnySession;
pub use error::SessionError;
pub use options::Options;
pub use session::{Description, Piece, Session, Step};
