//! Files mapped into memory: the crate's only unsafe code.
#![expect(unsafe_code, reason = "a memory map and a view of its bytes as integers")]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{DataError, Result};

/// The bytes of a file.
#[derive(Debug)]
pub(super) struct MappedFile {
    /// None for an empty file, which cannot be mapped everywhere.
    map: Option<Mmap>,
}

impl MappedFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let map = || {
            let file = File::open(path)?;
            if file.metadata()?.len() == 0 {
                return Ok(None);
            }
            // SAFETY: the map is read-only and private to this type. What is left is another process that changes the
            // file meanwhile, which the public constructor's documentation rules out.
            unsafe { Mmap::map(&file) }.map(Some)
        };
        Ok(Self { map: map().map_err(DataError::io("map", path))? })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

/// Little-endian bytes as numbers, without copying, where the machine and the alignment allow it.
pub(super) fn as_u32s(bytes: &[u8]) -> Option<&[u32]> {
    if cfg!(target_endian = "big") {
        return None;
    }
    // SAFETY: any four bytes are a valid u32, and `align_to` takes only aligned ones into the middle.
    let (before, tokens, after) = unsafe { bytes.align_to::<u32>() };
    (before.is_empty() && after.is_empty()).then_some(tokens)
}
