//! What a checkpoint's files must be: their lengths and checksums.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::TrainError;

const MANIFEST: &str = "manifest.json";

/// Lengths and checksums of files, by name.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    length: u64,
    crc32: u32,
}

impl Entry {
    fn of(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        let mut length = 0;
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                return Ok(Self { length, crc32: hasher.finalize() });
            }
            hasher.update(&buffer[..n]);
            length += n as u64;
        }
    }
}

impl Manifest {
    /// Writes what `files` in `directory` are.
    pub(crate) fn write(directory: &Path, files: &[&str]) -> Result<(), TrainError> {
        let path = directory.join(MANIFEST);
        let mut entries = BTreeMap::new();
        for name in files {
            let file = directory.join(name);
            let entry = Entry::of(&file).map_err(|e| TrainError::io("read back", &file, e))?;
            entries.insert((*name).to_string(), entry);
        }
        let json = serde_json::to_vec_pretty(&Self { files: entries })
            .map_err(|error| TrainError::write_checkpoint(&path, error))?;
        fs::write(&path, json).map_err(|e| TrainError::io("write", &path, e))
    }

    /// Checks that `files` in `directory` are what they were when the manifest was written.
    pub(crate) fn check(directory: &Path, files: &[&str]) -> Result<(), TrainError> {
        let path = directory.join(MANIFEST);
        let text = fs::read_to_string(&path).map_err(|error| TrainError::checkpoint(&path, error))?;
        let manifest: Self = serde_json::from_str(&text).map_err(|error| TrainError::checkpoint(&path, error))?;
        for name in files {
            let file = directory.join(name);
            let damaged = |reason: String| Err(TrainError::checkpoint(&file, reason));
            let Some(expected) = manifest.files.get(*name) else {
                return Err(TrainError::checkpoint(&path, format!("it does not list {name}")));
            };
            let found = Entry::of(&file).map_err(|error| TrainError::checkpoint(&file, error))?;
            if found.length != expected.length {
                return damaged(format!("it has {} bytes, {} were written", found.length, expected.length));
            }
            if found.crc32 != expected.crc32 {
                return damaged("its bytes are not those that were written".into());
            }
        }
        Ok(())
    }

    /// The manifest's file name.
    pub(crate) fn file_name() -> &'static str {
        MANIFEST
    }
}
