//! A disk that can be full.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// A small file system in memory, mounted until this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    mounted: bool,
}

impl SmallDisk {
    /// Mounts one over a folder.
    ///
    /// # Errors
    /// If this may not: that takes root.
    pub fn mount(path: &Path) -> Result<Self> {
        let mut disk = Self { path: path.to_owned(), mounted: false };
        fs::create_dir_all(path)?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=4m,mode=0755", "tmpfs"]).arg(path);
        let output = command.output().context("mount")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        disk.mounted = true;
        Ok(disk)
    }

    /// Leaves no room, not even what was freed since this was called last.
    ///
    /// # Errors
    /// If it cannot be written for another reason.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::options().create(true).append(true).open(self.big_file())?;
        loop {
            match file.write_all(&[0; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes room again.
    ///
    /// # Errors
    /// If it was not full.
    pub fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.big_file())?)
    }

    fn big_file(&self) -> PathBuf {
        self.path.join("big")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: whoever still has it open does not hold it up.
            let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
        }
    }
}
