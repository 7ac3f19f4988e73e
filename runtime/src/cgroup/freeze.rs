//! Pausing a container: its cgroup is frozen, on v2 by the cgroup itself, on v1 by the freezer controller.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::group::Group;
use super::host::put;
use super::{CgroupError, failed};

/// How long a process in the middle of a system call may take to stop.
const DEADLINE: Duration = Duration::from_secs(10);

/// The freezer of a cgroup: its file, the words for yes and no, and where it tells whether all stand still.
struct Freezer {
    file: PathBuf,
    yes: &'static str,
    no: &'static str,
    state: PathBuf,
    still: &'static str,
}

impl Group {
    /// Stops every process in it where it is. Returns when all have stopped.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] when one does not stop within ten seconds; all go on then.
    pub(crate) fn freeze(&self) -> Result<(), CgroupError> {
        let freezer = self.freezer()?;
        put(&freezer.file, freezer.yes).map_err(failed("freeze", &freezer.file))?;
        let deadline = Instant::now() + DEADLINE;
        let mut pause = Duration::from_micros(100);
        // On v1 each look at the state also catches what was forked in the wrong moment.
        while !fs::read_to_string(&freezer.state)
            .map_err(failed("freeze", &freezer.state))?
            .lines()
            .any(|line| line == freezer.still)
        {
            if Instant::now() >= deadline {
                // Half frozen is worse than not.
                let _ = put(&freezer.file, freezer.no);
                return Err(CgroupError::Busy(freezer.file));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Lets them go on. One that is not frozen is left as it is.
    pub(crate) fn thaw(&self) -> Result<(), CgroupError> {
        let freezer = self.freezer()?;
        put(&freezer.file, freezer.no).map_err(failed("thaw", &freezer.file))
    }

    /// Whether they are stopped, or are just being so.
    pub(crate) fn is_frozen(&self) -> bool {
        let Ok(freezer) = self.freezer() else { return false };
        fs::read_to_string(&freezer.file).is_ok_and(|state| state.trim() == freezer.yes || state.trim() == "FREEZING")
    }

    fn freezer(&self) -> Result<Freezer, CgroupError> {
        if let Some(dir) = self.host().v2().map(|hierarchy| self.dir(hierarchy)) {
            let (file, state) = (dir.join("cgroup.freeze"), dir.join("cgroup.events"));
            return Ok(Freezer { file, yes: "1", no: "0", state, still: "frozen 1" });
        }
        let Some(dir) = self.host().v1("freezer").map(|hierarchy| self.dir(hierarchy)) else {
            return Err(CgroupError::Controller {
                field: "pause",
                controller: "freezer".to_owned(),
                reason: "this host does not have".to_owned(),
            });
        };
        let file = dir.join("freezer.state");
        Ok(Freezer { state: file.clone(), file, yes: "FROZEN", no: "THAWED", still: "FROZEN" })
    }
}
