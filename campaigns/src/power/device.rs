//! The recorded device: slices of one block device for the data and for its log, and the mark that each answer leaves.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use campaigns::Error;

use super::message;

const SECTOR_BYTES: u64 = 512;
/// Length of the recorded file system: small, so that it is soon written anew for each cut.
pub(crate) const DATA_BYTES: u64 = 256 << 20;
const DATA: &str = "vkv-power-data";
const LOG: &str = "vkv-power-log";
const RECORDED: &str = "vkv-power-recorded";

/// Runs a program; what it says is shown where it fails.
pub(crate) fn command(program: &str, arguments: &[&OsStr]) -> Result<(), String> {
    // Where no udev runs nobody else makes the nodes of mapped devices.
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .env("DM_DISABLE_UDEV", "1")
        .output();
    let output = output.map_err(|error| format!("cannot start {program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{program} {} ended with {}: {}",
        words.join(" "),
        output.status,
        said.trim()
    ))
}

fn words(text: &str) -> Vec<&OsStr> {
    text.split(' ').map(OsStr::new).collect()
}

fn mapper(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

/// A recorded file system, mounted; taken apart when dropped.
pub(crate) struct Recorded {
    mount: PathBuf,
    mounted: bool,
    made: Vec<&'static str>,
}

impl Recorded {
    /// Makes a file system on the first bytes of `device`, whose rest takes the log, and mounts it at `mount`.
    pub(crate) fn new(device: &Path, mount: &Path) -> Result<Self, Error> {
        for module in ["dm-log-writes", "loop"] {
            command("modprobe", &[OsStr::new(module)])?;
        }
        let mut this = Self {
            mount: mount.to_owned(),
            mounted: false,
            made: Vec::new(),
        };
        let sectors = sectors_of(device)?;
        let data = DATA_BYTES / SECTOR_BYTES;
        if sectors < 4 * data {
            let least = (4 * DATA_BYTES) >> 20;
            return Err(format!("{} is too small: give {least} MiB", device.display()).into());
        }
        let device = device.display();
        this.make(DATA, &format!("0 {data} linear {device} 0"))?;
        this.make(LOG, &format!("0 {} linear {device} {data}", sectors - data))?;
        let (under, log) = (mapper(DATA), mapper(LOG));
        let table = format!("0 {data} log-writes {} {}", under.display(), log.display());
        this.make(RECORDED, &table)?;
        let recorded = mapper(RECORDED);
        // A small journal comes round often.
        let options =
            "-q -F -b 4096 -m 0 -N 2048 -J size=4 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        command(
            "mkfs.ext4",
            &[&words(options)[..], &[recorded.as_os_str()]].concat(),
        )?;
        fs::create_dir_all(mount)?;
        command(
            "mount",
            &[&words(MOUNT)[..], &[recorded.as_os_str(), mount.as_os_str()]].concat(),
        )?;
        this.mounted = true;
        Ok(this)
    }

    fn make(&mut self, name: &'static str, table: &str) -> Result<(), Error> {
        let arguments = ["create", name, "--table", table].map(OsStr::new);
        command("dmsetup", &arguments)?;
        self.made.push(name);
        Ok(())
    }

    /// Ends the recording; where the log is, until this is dropped.
    pub(crate) fn end(&mut self) -> Result<PathBuf, Error> {
        command("umount", &[self.mount.as_os_str()])?;
        self.mounted = false;
        // Everything that was not flushed is logged when the device goes.
        self.made.retain(|name| *name != RECORDED);
        command("dmsetup", &["remove", RECORDED].map(OsStr::new))?;
        Ok(mapper(LOG))
    }
}

/// How both the recorded and the cut file systems are mounted: ext4's help for programs that forget to sync before they
/// rename is switched off.
const MOUNT: &str = "-t ext4 -o noinit_itable,noauto_da_alloc";

impl Drop for Recorded {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = command("umount", &[self.mount.as_os_str()])
        {
            eprintln!("power: {error}");
        }
        for name in self.made.iter().rev() {
            if let Err(error) = command("dmsetup", &["remove", name].map(OsStr::new)) {
                eprintln!("power: {error}");
            }
        }
    }
}

/// Length of a block device, in sectors.
fn sectors_of(device: &Path) -> Result<u64, Error> {
    let real = fs::canonicalize(device).map_err(|error| format!("{}: {error}", device.display()))?;
    let name = real.file_name().unwrap_or_default();
    let size = Path::new("/sys/class/block").join(name).join("size");
    let text = fs::read_to_string(&size).map_err(|error| {
        format!(
            "{} is no block device: {}: {error}",
            device.display(),
            size.display()
        )
    })?;
    Ok(text.trim().parse()?)
}

/// A mounted image; unmounted when dropped.
pub(crate) struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// Mounts the file `image` at `mount`, replaying its journal.
    pub(crate) fn new(image: &Path, mount: &'a Path) -> Result<Self, String> {
        let options = format!("{MOUNT},loop");
        command(
            "mount",
            &[&words(&options)[..], &[image.as_os_str(), mount.as_os_str()]].concat(),
        )?;
        Ok(Self(mount))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = command("umount", &[self.0.as_os_str()]) {
            eprintln!("power: {error}");
        }
    }
}

/// Marks in the log that this was answered; the mark is there when this returns.
pub(crate) fn mark(text: &str) -> Result<(), String> {
    let message = format!("mark {text}");
    message::send(RECORDED, &message).map_err(|error| format!("marking {text} in the log: {error}"))
}
