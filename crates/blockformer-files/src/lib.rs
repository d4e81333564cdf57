//! Files that appear whole or not at all.
//!
//! ```
//! # fn main() -> std::io::Result<()> {
//! use std::io::Write;
//! use blockformer_files::AtomicFile;
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("numbers.txt");
//! let mut file = AtomicFile::create(&path)?;
//! for number in 0..1000 {
//!     writeln!(file, "{number}")?;
//! }
//! assert!(!path.exists()); // until
//! file.commit()?;
//! assert!(path.exists());
//! # Ok(())
//! # }
//! ```

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file written under a temporary name in the folder it is to be in, and renamed when complete.
///
/// Dropped before it is committed, it is gone, and a file of its name is as it was. If the process is killed, a file
/// called `.NAME.….partial` may be left, but none that is half-written under its name. Its permissions are those of the
/// file it replaces, or else of any new file.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    writer: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Starts the file that is to be at `path`.
    ///
    /// # Errors
    /// If there can be no file there.
    pub fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
        let prefix = format!(".{}.", name.display());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".partial");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Narrowed by the process's umask, as for any new file.
            builder.permissions(Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder_of(path))?;
        if let Ok(replaced) = std::fs::metadata(path) {
            file.as_file().set_permissions(replaced.permissions())?;
        }
        Ok(Self { path: path.to_path_buf(), writer: BufWriter::with_capacity(1 << 18, file) })
    }

    /// The path that the file is to have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until what has been written is on the disk: where there is no room for it, this fails.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn sync(&mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().as_file().sync_all()
    }

    /// Gives the file its name, when its contents are on the disk.
    ///
    /// # Errors
    /// If it cannot be written or renamed; a file of its name is then as it was.
    pub fn commit(self) -> io::Result<()> {
        let file = self.writer.into_inner().map_err(|error| error.into_error())?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        sync_folder(folder_of(&self.path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Writes a file whole or not at all.
///
/// # Errors
/// If it cannot be written; what stood there before is then as it was.
pub fn write_atomically(path: &Path, contents: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(contents.as_ref())?;
    file.commit()
}

/// The permissions of the file at `path`, or else those that a new file there would have.
///
/// For files that a library writes for itself alone, as temporary files are.
///
/// # Errors
/// If there can be no file there.
pub fn permissions_for(path: &Path) -> io::Result<Permissions> {
    Ok(AtomicFile::create(path)?.writer.get_ref().as_file().metadata()?.permissions())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits until names in a folder are on the disk. Folders cannot be opened for this everywhere, and then need it not.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn a_file_that_is_not_committed_leaves_the_old_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.sync().unwrap();
        drop(file);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(folder.path()), [path]);
    }

    #[test]
    fn a_committed_file_replaces_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomically(&path, "old and longer").unwrap();
        write_atomically(&path, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(folder.path()), [path]);
    }

    #[test]
    fn where_there_can_be_no_file_it_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_atomically(&folder.path().join("no/such/file"), "text").is_err());
        assert!(write_atomically(&folder.path().join(".."), "text").is_err());
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        assert!(write_atomically(&folder.path().join("folder"), "text").is_err());
        assert_eq!(names(folder.path()).len(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_has_the_permissions_of_an_ordinary_one_or_of_the_one_it_replaces() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (plain, committed) = (folder.path().join("plain"), folder.path().join("committed"));
        std::fs::write(&plain, "text").unwrap();
        write_atomically(&committed, "text").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&committed), mode(&plain));
        assert_eq!(permissions_for(&folder.path().join("new")).unwrap().mode(), mode(&plain));
        std::fs::set_permissions(&committed, Permissions::from_mode(0o640)).unwrap();
        write_atomically(&committed, "text").unwrap();
        assert_eq!(mode(&committed) & 0o777, 0o640);
        assert_eq!(names(folder.path()).len(), 2);
    }
}
