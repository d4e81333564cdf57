//! Keeping what was found out about kernels for the next process.

use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::Device;

/// The environment variable that says where [`keep_kernels`] keeps them: a directory, or `off`.
pub const KERNEL_CACHE_VARIABLE: &str = "BLOCKFORMER_KERNEL_CACHE";

/// From now on keeps in files which of several kernels was found to be the fastest for a shape, and what kernels compile to where that
/// can be relied on, so that the next process need not find out again: to compile and time all that could do takes minutes for a GPU with
/// tensor cores. **Call it before any device is opened**, and [`keep_kernels_of`] for each that is (`blockformer::device` does).
///
/// Does nothing in a build without the feature `persistence` and one of `cuda` and `wgpu`, with [`KERNEL_CACHE_VARIABLE`] `off`,
/// and where CubeCL has been configured by somebody else before.
///
/// Files lie in `directory`, or else where a `cubecl.toml` or `burn.toml` says, or else in the user's cache directory. Another
/// directory that [`KERNEL_CACHE_VARIABLE`] names goes before all of them. Several processes may share them. Where they cannot be written
/// kernels are tried anew. They can be deleted at any time between processes.
///
/// CubeCL 0.11 finds compiled kernels by a hash that takes some different ones for the same (see `docs/gpu.md`). They are kept only
/// in builds where it does not, which is found out here.
///
/// # Errors
/// [`io::Error`], which names the directory, if one that was named is not there and cannot be made.
pub fn keep_kernels(directory: Option<&Path>) -> io::Result<()> {
    let named = std::env::var_os(KERNEL_CACHE_VARIABLE).filter(|value| !value.is_empty());
    if named.as_deref().is_some_and(|value| value == "off") {
        return Ok(());
    }
    cache::open(named.as_deref().map(Path::new).or(directory))
}

/// From now on keeps what is found out on devices of this kind in a file of their own, if [anything is kept](keep_kernels): what is
/// the fastest on one may not run on another. Opens the device. What a process computes with several kinds of devices at once is
/// kept in the file of the last of them.
pub fn keep_kernels_of(device: &Device) {
    cache::choose(device);
}

/// The file in which kernels are kept at present, if they are.
pub fn kernel_cache() -> Option<PathBuf> {
    cache::file()
}

#[cfg(all(feature = "_kernels", feature = "persistence", not(target_family = "wasm")))]
mod cache {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
    use std::sync::OnceLock;

    use burn::backend::DispatchDevice;
    use cubecl::config::cache::CacheConfig;
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    use cubecl::environment;
    use cubecl::prelude::*;

    use super::*;

    /// Whether files are named by the kinds of devices, and not as a configuration says; unset where nothing is kept.
    static NAMED_BY_DEVICE: OnceLock<bool> = OnceLock::new();

    pub(super) fn open(directory: Option<&Path>) -> io::Result<()> {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = tells_cases_apart();
        match directory {
            Some(directory) => {
                std::fs::create_dir_all(directory).map_err(|error| {
                    let message = format!("cannot make {} for kernels: {error}", directory.display());
                    io::Error::new(error.kind(), message)
                })?;
                config.environment.path = CacheConfig::Directory(directory.to_path_buf());
            }
            // CubeCL's own default depends on where the program is run.
            None if matches!(config.environment.path, CacheConfig::Target) => {
                config.environment.path = CacheConfig::Global;
            }
            None => {}
        }
        let by_device = config.environment.name == environment::DEFAULT;
        if CubeClRuntimeConfig::try_set(config) {
            // CubeCL is configured once.
            let _ = NAMED_BY_DEVICE.set(by_device);
        }
        Ok(())
    }

    pub(super) fn choose(device: &Device) {
        let (Some(true), DispatchDevice::Cube(device)) = (NAMED_BY_DEVICE.get(), device.as_dispatch()) else { return };
        let client = device.client();
        let properties = client.properties();
        // What decides which kernels run and which are tried, whether float32 products are rounded to TF32 included.
        let kind = (&properties.features, format!("{:?}", properties.hardware), &properties.identity.fingerprint);
        let part = properties.identity.name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        let name = format!("blockformer-{part}-{:016x}", hash(kind));
        // A switch drops what is in memory.
        if *environment::active() != *name {
            environment::activate(name);
        }
    }

    pub(super) fn file() -> Option<PathBuf> {
        NAMED_BY_DEVICE.get().map(|_| environment::path())
    }

    fn hash(value: impl Hash) -> u64 {
        BuildHasherDefault::<DefaultHasher>::default().hash_one(value)
    }

    /// Has the hash that CubeCL derives for every enum of a kernel's arguments.
    #[derive(CubeType, CubeLaunch)]
    #[allow(dead_code)] // it is only hashed
    enum Cases {
        One { x: u32 },
        Other { x: u32 },
    }

    /// Whether the hash by which compiled kernels are found tells apart kernels that differ in which case of an enum they were given.
    pub(super) fn tells_cases_apart() -> bool {
        hash(CasesCompilationArg::One { x: () }) != hash(CasesCompilationArg::Other { x: () })
    }
}

#[cfg(not(all(feature = "_kernels", feature = "persistence", not(target_family = "wasm"))))]
mod cache {
    use super::*;

    pub(super) fn open(_: Option<&Path>) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn choose(_: &Device) {}

    pub(super) fn file() -> Option<PathBuf> {
        None
    }
}
