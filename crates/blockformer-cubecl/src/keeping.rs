//! Keeping what was found out about kernels for the next process.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use thiserror::Error;

/// The environment variable that says where [`keep_kernels`] keeps them: a directory, or `off`.
pub const KERNEL_CACHE_VARIABLE: &str = "BLOCKFORMER_KERNEL_CACHE";

/// The environment variable that has [`keep_kernels`] keep what kernels compile to as well, if it is `1`.
pub const COMPILED_KERNELS_VARIABLE: &str = "BLOCKFORMER_COMPILED_KERNELS";

/// Why kernels cannot be kept where they were to be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KernelCacheError {
    /// A directory that is not there and cannot be made.
    #[error("cannot make the directory {} for kernels: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// From now on keeps in a file which of several kernels was found to be the fastest for a shape, so that the next process need not find
/// out again: to compile and time all that could do takes minutes for a GPU with tensor cores. **Call it before any device is
/// opened**, and [`keep_kernels_of`] with the first one that is (`blockformer::device` does). False where nothing is kept: in a build
/// without the feature `persistence` and one of `cuda` and `wgpu`, with [`KERNEL_CACHE_VARIABLE`] `off`, and where CubeCL has been
/// configured before.
///
/// The file lies in `directory`, or else where a `cubecl.toml` or `burn.toml` says, or else in the user's cache directory (also where such a
/// file names CubeCL's default, `target`). Another directory that [`KERNEL_CACHE_VARIABLE`] names goes before all of them. Several
/// processes may share it. Where it cannot be written kernels are tried anew. It can be deleted at any time between
/// processes, and should be when the driver is replaced.
///
/// What kernels compile to is kept too with [`COMPILED_KERNELS_VARIABLE`] or where a configuration says so, but only in builds where CubeCL
/// tells kernels apart by the hash under which it keeps them; that of CubeCL 0.11.3 does not (see `docs/gpu.md`).
///
/// # Errors
/// [`KernelCacheError::Directory`] if a directory that was named is not there and cannot be made.
pub fn keep_kernels(directory: Option<&Path>) -> Result<bool, KernelCacheError> {
    let named = std::env::var_os(KERNEL_CACHE_VARIABLE).filter(|value| !value.is_empty());
    if named.as_deref().is_some_and(|value| value == "off") {
        cache::keep_nothing();
        return Ok(false);
    }
    cache::open(named.as_deref().map(Path::new).or(directory))
}

/// Has the file in which [kernels are kept](keep_kernels) named after this kind of device, as what is the fastest on one may not run on
/// another; unless a configuration or `CUBECL_ENVIRONMENT` names it. The first device decides, others change nothing. Opens it.
pub fn keep_kernels_of(device: &Device) {
    cache::choose(device);
}

/// The file in which kernels are kept, if they are to be.
pub fn kernel_cache() -> Option<PathBuf> {
    cache::file()
}

#[cfg(all(feature = "_kernels", feature = "persistence", not(target_family = "wasm")))]
mod cache {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Once, OnceLock};

    use burn::backend::DispatchDevice;
    use cubecl::config::cache::CacheConfig;
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    use cubecl::environment;
    use cubecl::prelude::*;
    use cubecl::records::RecordLevel;

    use super::*;

    /// Whether the file is named by the kind of device, and not as a configuration says; unset where nothing is kept.
    static NAMED_BY_DEVICE: OnceLock<bool> = OnceLock::new();

    /// CubeCL keeps what was the fastest by itself, in a file for all kinds of devices.
    pub(super) fn keep_nothing() {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = false;
        config.autotune.disable_cache = true;
        config.throughput.disable_cache = true;
        config.environment.records.level = RecordLevel::Off;
        CubeClRuntimeConfig::try_set(config);
    }

    pub(super) fn open(directory: Option<&Path>) -> Result<bool, KernelCacheError> {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        let compiled = std::env::var_os(COMPILED_KERNELS_VARIABLE).is_some_and(|value| value == "1");
        config.compilation.cache = (compiled || config.compilation.cache) && tells_cases_apart();
        match directory {
            Some(directory) => {
                let failed = |source| KernelCacheError::Directory { path: directory.to_path_buf(), source };
                std::fs::create_dir_all(directory).map_err(failed)?;
                config.environment.path = CacheConfig::Directory(directory.to_path_buf());
            }
            // CubeCL's own default depends on where the program is run.
            None if matches!(config.environment.path, CacheConfig::Target) => {
                config.environment.path = CacheConfig::Global;
            }
            None => {}
        }
        let by_device = config.environment.name == environment::DEFAULT;
        if by_device {
            config.environment.name = "blockformer".into(); // until a device is opened
        }
        let is_kept = CubeClRuntimeConfig::try_set(config);
        if is_kept {
            // CubeCL is configured once.
            let _ = NAMED_BY_DEVICE.set(by_device);
        }
        Ok(is_kept)
    }

    pub(super) fn choose(device: &Device) {
        // Another choice later would drop what others are computing with.
        static CHOSEN: Once = Once::new();
        if let (Some(true), DispatchDevice::Cube(device)) = (NAMED_BY_DEVICE.get(), device.as_dispatch()) {
            CHOSEN.call_once(|| {
                // A device that cannot be opened says so when it is used.
                let name = catch_unwind(AssertUnwindSafe(|| name_of_kind(&device.client())));
                name.into_iter().for_each(environment::activate);
            });
        }
    }

    fn name_of_kind(client: &cubecl::client::Client) -> String {
        let properties = client.properties();
        // What decides which kernels run and which are tried, whether float32 products are rounded to TF32 included.
        let kind = hash((&properties.features, &properties.hardware, &properties.identity.fingerprint));
        let part = properties.identity.name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        format!("blockformer-{part}-{kind:016x}")
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
    fn tells_cases_apart() -> bool {
        hash(CasesCompilationArg::One { x: () }) != hash(CasesCompilationArg::Other { x: () })
    }
}

#[cfg(not(all(feature = "_kernels", feature = "persistence", not(target_family = "wasm"))))]
mod cache {
    use super::*;

    pub(super) fn keep_nothing() {}

    pub(super) fn open(_: Option<&Path>) -> Result<bool, KernelCacheError> {
        Ok(false)
    }

    pub(super) fn choose(_: &Device) {}

    pub(super) fn file() -> Option<PathBuf> {
        None
    }
}

#[cfg(all(test, not(feature = "_kernels")))]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_nothing_is_kept() {
        assert!(!keep_kernels(Some(Path::new("nowhere"))).unwrap());
        keep_kernels_of(&Device::flex());
        assert_eq!(kernel_cache(), None);
        assert!(!Path::new("nowhere").exists());
    }
}
