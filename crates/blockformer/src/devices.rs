//! Devices by name.

use burn::tensor::Device;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use burn::tensor::DeviceType;
use thiserror::Error;

/// Why a device could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A name that is not a device's.
    #[error("unknown device {name:?}; this build on this machine has: {}", available.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// Names that would do.
        available: Vec<String>,
    },
    /// A backend that this build was made without.
    #[error(
        "device {name:?} needs a build with the feature {feature:?}; this build on this machine has: {}",
        available.join(", ")
    )]
    NotBuilt {
        /// The name.
        name: String,
        /// The feature it needs.
        feature: &'static str,
        /// Names that would do.
        available: Vec<String>,
    },
    /// A device that this machine does not have.
    #[error("device {name:?} was not found; this build on this machine has: {}", available.join(", "))]
    NotFound {
        /// The name.
        name: String,
        /// Names that would do.
        available: Vec<String>,
    },
    /// A worker that cannot be reached, or does not serve this client.
    #[error("device {name:?}: {reason}")]
    Remote {
        /// The name.
        name: String,
        /// Why.
        reason: String,
    },
}

/// The backends that names can begin with, and whether this build has them.
const BACKENDS: [(&str, &str, bool); 8] = [
    ("cpu", "flex", cfg!(any(feature = "flex", feature = "ndarray"))),
    ("flex", "flex", cfg!(feature = "flex")),
    ("ndarray", "ndarray", cfg!(feature = "ndarray")),
    ("cuda", "cuda", cfg!(feature = "cuda")),
    ("wgpu", "wgpu", cfg!(feature = "wgpu")),
    ("vulkan", "vulkan", cfg!(feature = "vulkan")),
    ("metal", "metal", cfg!(feature = "metal")),
    ("webgpu", "webgpu", cfg!(feature = "webgpu")),
];

/// The CPU backend whose numbers others are compared with, if this build has it.
pub(crate) fn flex() -> Option<Device> {
    #[cfg(feature = "flex")]
    return Some(Device::flex());
    #[cfg(not(feature = "flex"))]
    None
}

/// Opens a device by name: `cpu`, `cuda`, `cuda:1`, `wgpu`, `vulkan`, `metal`, `webgpu`, or `flex` and `ndarray` for a
/// certain CPU backend. A number selects among several devices of a backend, 0 being the default.
///
/// `remote:ws://HOST:PORT` is a device that `blockformer worker` serves, in a build with the feature `remote`. A worker
/// that is not there is waited for, some seconds; the token it may want is that in `BLOCKFORMER_WORKER_TOKEN`.
///
/// Where [kernels are kept](crate::keep_kernels), the first GPU that is opened so decides the name of their file.
///
/// # Errors
/// A [`DeviceError`] that lists what this build has on this machine.
pub fn device(name: &str) -> Result<Device, DeviceError> {
    let available = available_devices;
    if let Some(url) = name.strip_prefix("remote:") {
        return remote(name, url);
    }
    let unknown = || DeviceError::Unknown { name: name.into(), available: available() };
    let (backend, index) = match name.split_once(':') {
        Some((backend, index)) => (backend, index.parse::<usize>().map_err(|_| unknown())?),
        None => (name, 0),
    };
    let Some((_, feature, built)) = BACKENDS.iter().find(|(known, _, _)| *known == backend) else {
        return Err(unknown());
    };
    if !built {
        return Err(DeviceError::NotBuilt { name: name.into(), feature, available: available() });
    }
    let not_found = || DeviceError::NotFound { name: name.into(), available: available() };
    let device = devices_of(backend).into_iter().nth(index).ok_or_else(not_found)?;
    blockformer_cubecl::keep_kernels_of(&device);
    Ok(device)
}

/// The first device this build finds: the CPU, where it has a CPU backend.
///
/// # Errors
/// [`DeviceError::NotFound`] if there is none.
pub fn default_device() -> Result<Device, DeviceError> {
    match available_devices().first() {
        Some(name) => device(name),
        None => Err(DeviceError::NotFound { name: "any".into(), available: Vec::new() }),
    }
}

/// Whether what is computed on `device` is computed by the CPU.
pub fn is_cpu(device: &Device) -> bool {
    ["flex", "ndarray"].into_iter().flat_map(devices_of).any(|cpu| cpu == *device)
}

/// Whether `device` is one of NVIDIA's, by CUDA.
pub(crate) fn is_cuda(device: &Device) -> bool {
    devices_of("cuda").contains(device)
}

/// The names of all devices that this build finds on this machine.
pub fn available_devices() -> Vec<String> {
    let built = BACKENDS.iter().filter(|(_, _, built)| *built);
    built.flat_map(|(backend, _, _)| names(backend, devices_of(backend).len())).collect()
}

fn names(backend: &str, n: usize) -> Vec<String> {
    match n {
        1 if matches!(backend, "cpu" | "flex" | "ndarray") => vec![backend.to_string()],
        _ => (0..n).map(|index| format!("{backend}:{index}")).collect(),
    }
}

fn devices_of(backend: &str) -> Vec<Device> {
    match backend {
        #[cfg(feature = "flex")]
        "cpu" | "flex" => vec![Device::flex()],
        #[cfg(all(feature = "ndarray", not(feature = "flex")))]
        "cpu" => vec![ndarray()],
        #[cfg(feature = "ndarray")]
        "ndarray" => vec![ndarray()],
        #[cfg(feature = "cuda")]
        "cuda" => Device::enumerate(DeviceType::Cuda).into_vec(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::enumerate(DeviceType::Wgpu).into_vec(),
        #[cfg(feature = "vulkan")]
        "vulkan" => Device::enumerate(DeviceType::Vulkan).into_vec(),
        #[cfg(feature = "metal")]
        "metal" => Device::enumerate(DeviceType::Metal).into_vec(),
        #[cfg(feature = "webgpu")]
        "webgpu" => Device::enumerate(DeviceType::WebGpu).into_vec(),
        _ => Vec::new(),
    }
}

#[cfg(feature = "remote")]
fn remote(name: &str, url: &str) -> Result<Device, DeviceError> {
    let failed = |reason: String| DeviceError::Remote { name: name.into(), reason };
    if url.strip_prefix("ws://").is_none_or(str::is_empty) {
        return Err(failed("expected remote:ws://HOST:PORT".into()));
    }
    let host = burn::remote::RemoteHost::websocket(url);
    let host = match std::env::var(crate::worker::TOKEN_VARIABLE) {
        Ok(token) => host.with_credential(token.as_str()),
        Err(_) => host,
    };
    Device::remote_options(&host).init().map_err(|error| failed(error.to_string()))
}

#[cfg(not(feature = "remote"))]
fn remote(name: &str, _url: &str) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { name: name.into(), feature: "remote", available: available_devices() })
}

#[cfg(feature = "ndarray")]
#[expect(deprecated, reason = "Burn drops this backend in 0.23; until then it can be chosen")]
fn ndarray() -> Device {
    Device::ndarray()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_get_a_list_of_what_there_is() {
        let message = device("tpu").unwrap_err().to_string();
        assert!(message.starts_with("unknown device \"tpu\"; this build on this machine has: "), "{message}");
        assert!(matches!(device("cpu:one"), Err(DeviceError::Unknown { .. })));
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_cpu_is_always_there_but_only_once() {
        assert_eq!(device("cpu").unwrap(), Device::flex());
        assert!(is_cpu(&device("cpu").unwrap()));
        assert!(matches!(device("cpu:1"), Err(DeviceError::NotFound { .. })));
        assert!(available_devices().contains(&"cpu".to_string()));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_that_was_not_built_names_its_feature() {
        let error = device("cuda:0").unwrap_err();
        assert!(matches!(&error, DeviceError::NotBuilt { feature: "cuda", .. }), "{error}");
        assert!(error.to_string().contains("cpu"));
    }

    #[test]
    fn a_worker_needs_the_feature_and_an_address() {
        let error = device("remote:tcp://somewhere").unwrap_err();
        if cfg!(feature = "remote") {
            assert!(error.to_string().contains("expected remote:ws://HOST:PORT"), "{error}");
        } else {
            assert!(matches!(error, DeviceError::NotBuilt { feature: "remote", .. }), "{error}");
        }
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_that_is_not_there_is_not_found() {
        assert!(matches!(device("cuda:4096"), Err(DeviceError::NotFound { .. })));
    }
}
