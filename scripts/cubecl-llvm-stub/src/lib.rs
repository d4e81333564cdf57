//! The part of `cubecl-llvm` 0.11.3 that `cubecl-cuda` needs to compile, without LLVM: kernels then go through NVRTC, and
//! the LLVM backend, if it is chosen all the same, answers with an error. `scripts/check-cuda.sh` puts the two modules
//! beside this file; they are those of the published crate.

use core::ffi::c_char;
use core::fmt;

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::BufferIOAttr;

pub mod nvptx {
    //! Of the NVPTX backend.
    pub mod ptx_version;
}
pub mod shared {
    //! Of all backends.
    pub mod lowered_features;
}

/// What code is made for.
#[derive(Clone, Copy, Debug, Default)]
pub enum LlvmTarget {
    /// NVIDIA's virtual machine.
    #[default]
    Nvptx,
}

/// The compiler that is not there.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What code would be made for.
    pub target: LlvmTarget,
}

/// Its options.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// For CPUs.
    pub cpu_buffer_alignment: Option<u32>,
    /// For AMD's GPUs.
    pub arch: Option<()>,
    /// The GPU's architecture.
    pub sm_arch: Option<SmArch>,
    /// The newest PTX the driver takes.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether constants are passed by grid.
    pub grid_constants: bool,
}

/// A compiled module.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX, ending in a zero.
    pub ptx: Vec<c_char>,
    /// The kernel's name.
    pub entrypoint: String,
    /// What it was made of.
    pub ir: String,
    /// Bytes.
    pub shared_memory_size: usize,
    /// Its buffers.
    pub io: Vec<BufferIOAttr>,
}

/// What the compiler gives.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// For NVIDIA's GPUs.
    NvptxCode(NvptxModule),
    /// For others.
    Other,
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing: built without LLVM")
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(&mut self, _kernel: KernelDefinition, _options: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        let reason = "this build has no LLVM; kernels go through NVRTC".into();
        Err(CompilationError::Generic { reason, backtrace: BackTrace::capture() })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
