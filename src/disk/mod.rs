//! What changes files: every write, sync, rename and removal of outputs and of what lies beside them goes through here, so
//! that a test can let each of them fail, or end the run at it ([`fault`]). What is written where is the callers' matter.

pub mod partial;

#[cfg(feature = "internals")]
pub mod fault;

use std::fs::{File, TryLockError};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::{Path, PathBuf};

/// Where tests step in.
#[cfg(not(feature = "internals"))]
mod fault {
    pub(super) fn before(_: &str, _: &std::path::Path) -> std::io::Result<()> {
        Ok(())
    }
}

/// An open file that is written by position, from any thread.
#[derive(Debug)]
pub struct Written {
    file: File,
    path: PathBuf,
}

impl Written {
    /// Makes `path` anew, for reading and writing, or opens what is there and leaves its bytes as they are. A link is not
    /// followed.
    pub fn open(path: &Path) -> Result<Self> {
        fault::before("create", path)?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        }
        Ok(Self { file: options.open(path)?, path: path.to_path_buf() })
    }

    /// The same for a file that everybody may read, as any new one.
    pub fn open_public(path: &Path) -> Result<Self> {
        fault::before("create", path)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same file, which has got another name.
    pub fn at(self, path: &Path) -> Self {
        Self { path: path.to_path_buf(), ..self }
    }

    /// Keeps other processes from the file for as long as it is open. Where the file system has no locks, all is well.
    ///
    /// # Errors
    /// `WouldBlock` while another one has it.
    pub fn lock(&self) -> Result<()> {
        match self.file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(ErrorKind::WouldBlock.into()),
            Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
        }
    }

    /// Whether the file still has its name.
    pub fn is_in_place(&self) -> Result<bool> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let here = self.file.metadata()?;
            let there = self.path.symlink_metadata();
            Ok(there.is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())))
        }
        #[cfg(not(unix))]
        Ok(true)
    }

    pub fn set_len(&self, len: u64) -> Result<()> {
        fault::before("truncate", &self.path)?;
        self.file.set_len(len)
    }

    /// Sets the length and reserves the space where the file system can; where not, the writes find out.
    pub fn reserve(&self, len: u64) -> Result<()> {
        self.set_len(len)?;
        #[cfg(target_os = "linux")]
        if len > 0 {
            use rustix::fs::{FallocateFlags, fallocate};
            fault::before("reserve", &self.path)?;
            match fallocate(&self.file, FallocateFlags::empty(), 0, len) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        fault::before("write", &self.path)?;
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset);
        #[cfg(windows)]
        {
            let (mut offset, mut bytes) = (offset, bytes);
            while !bytes.is_empty() {
                let n = std::os::windows::fs::FileExt::seek_write(&self.file, bytes, offset)?;
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Ok(())
        }
    }

    /// Copies `len` bytes of another file, from byte `from` on, to byte `to`; inside the file system where it can, and holes
    /// stay holes where the length was set before.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other file is shorter.
    pub fn copy_range(&self, other: &File, from: u64, to: u64, len: u64) -> Result<()> {
        fault::before("write", &self.path)?;
        #[cfg(target_os = "linux")]
        return copy_on_linux(other, from, &self.file, to, len);
        #[cfg(not(target_os = "linux"))]
        self.copy_through_memory(other, from, to, len)
    }

    #[cfg(not(target_os = "linux"))]
    fn copy_through_memory(&self, other: &File, from: u64, to: u64, len: u64) -> Result<()> {
        use std::io::{Seek, SeekFrom};
        let mut other = other;
        other.seek(SeekFrom::Start(from))?;
        let (mut done, mut buffer) = (0, vec![0; (1u64 << 20).min(len) as usize]);
        while done < len {
            let n = (len - done).min(buffer.len() as u64) as usize;
            other.read_exact(&mut buffer[..n])?;
            self.write_at(to + done, &buffer[..n])?;
            done += n as u64;
        }
        Ok(())
    }

    /// `len` bytes from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file is shorter.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        use std::io::{Seek, SeekFrom};
        let mut bytes = vec![0; len];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// All of the file, from its start.
    pub fn read_all(&mut self) -> Result<Vec<u8>> {
        use std::io::Seek;
        let mut bytes = Vec::new();
        self.file.rewind()?;
        self.file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Makes sure that what was written is on the disk.
    pub fn sync(&self) -> Result<()> {
        fault::before("sync", &self.path)?;
        self.file.sync_all()
    }

    /// Temporary files are private; a finished one gets the mode that any new file would have.
    pub fn set_usual_mode(&self) -> Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fault::before("chmod", &self.path)?;
            let mask = rustix::process::umask(rustix::fs::Mode::empty());
            rustix::process::umask(mask);
            self.file.set_permissions(std::fs::Permissions::from_mode(0o666 & !mask.bits()))?;
        }
        Ok(())
    }
}

/// Copies the parts of a range that hold data; the rest are holes, which the other file has there too.
#[cfg(target_os = "linux")]
fn copy_on_linux(from: &File, start: u64, to: &File, at: u64, len: u64) -> Result<()> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    let end = start + len;
    if from.metadata()?.len() < end {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let mut position = start;
    while position < end {
        let data = match seek(from, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            // A file system that tells of no holes.
            Err(_) => position,
        };
        if data >= end {
            break;
        }
        let hole = seek(from, SeekFrom::Hole(data)).unwrap_or(end).clamp(data, end);
        let stop = if hole == data { end } else { hole };
        copy_data(from, data, to, at + (data - start), stop - data)?;
        position = stop;
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn copy_data(from: &File, start: u64, to: &File, at: u64, len: u64) -> Result<()> {
    use rustix::io::Errno;
    use std::os::unix::fs::FileExt;
    let (mut read, mut written) = (start, at);
    let mut buffer = Vec::new();
    while read < start + len {
        let left = start + len - read;
        if buffer.is_empty() {
            // At most so much at once, so that a signal is heard.
            let n = usize::try_from(left.min(256 << 20)).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), n) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => continue,
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                    buffer.resize(1 << 20, 0);
                }
                Err(e) => return Err(e.into()),
            }
        }
        let n = left.min(buffer.len() as u64) as usize;
        from.read_exact_at(&mut buffer[..n], read)?;
        to.write_all_at(&buffer[..n], written)?;
        read += n as u64;
        written += n as u64;
    }
    Ok(())
}

/// Renames a file or a folder, in place of a file that has the name.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fault::before("rename", to)?;
    std::fs::rename(from, to)
}

/// Renames a file to a name that is free.
///
/// # Errors
/// `AlreadyExists` where it is not.
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    fault::before("rename", to)?;
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {}
            done => return done.map_err(Error::from),
        }
    }
    // Not in one step, but no run of this program is at the name: the temporary file is locked.
    if to.symlink_metadata().is_ok() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    std::fs::rename(from, to)
}

/// Lets two files or folders change their names in one step. Whether the system can.
pub fn exchange(from: &Path, to: &Path) -> Result<bool> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        fault::before("rename", to)?;
        match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (from, to);
        Ok(false)
    }
}

/// Removes a file. One that is not there is removed.
pub fn remove_file(path: &Path) -> Result<()> {
    fault::before("remove", path)?;
    unless_missing(std::fs::remove_file(path))
}

/// Removes a folder with all that is in it; `last` of it, by which its state is known, after everything else. One that is
/// not there is removed.
pub fn remove_folder(path: &Path, last: &str) -> Result<()> {
    if path.is_symlink() {
        return remove_file(path);
    }
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name() == last {
            continue;
        }
        fault::before("remove", &entry.path())?;
        unless_missing(match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path()),
            false => std::fs::remove_file(entry.path()),
        })?;
    }
    remove_file(&path.join(last))?;
    fault::before("remove", path)?;
    unless_missing(std::fs::remove_dir(path))
}

fn unless_missing(removed: Result<()>) -> Result<()> {
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Makes a folder in one that is there.
pub fn create_folder(path: &Path) -> Result<()> {
    fault::before("mkdir", path)?;
    std::fs::create_dir(path)
}

/// The same with those above it.
pub fn create_folders(path: &Path) -> Result<()> {
    fault::before("mkdir", path)?;
    if is_no_folder(path) {
        return Err(Error::new(ErrorKind::NotADirectory, "something else than a folder is there"));
    }
    std::fs::create_dir_all(path)
}

/// Whether something else than a folder lies there; a slash behind its name does not matter.
pub fn is_no_folder(path: &Path) -> bool {
    let path = path.components().as_path();
    path.exists() && !path.is_dir()
}

/// Writes a whole file of a folder that is not finished yet.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = Written::open_public(path)?;
    file.set_len(0)?;
    file.write_at(0, bytes)?;
    file.sync()
}

/// The names in a folder should survive a power cut. A file system that cannot sync folders loses only that.
pub fn sync_folder_of(path: &Path) {
    if let Ok(folder) = File::open(folder_of(path)) {
        let _ = folder.sync_all();
    }
}

/// The folder a file lives in; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Bytes that can still be written in the folder of `path`, where the system tells.
pub fn free_space(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(folder_of(path)).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}
