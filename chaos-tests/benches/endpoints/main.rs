//! What a change of one endpoint costs where there are many: on a host that carries the network, in its agent and its
//! kernel; and, with `--simulate`, in a cluster of a thousand hosts and in its managers.

mod host;
mod simulated;

use std::process::ExitCode;

use anyhow::Result;
use chaos_tests::bench::{Report, run};

const HELP: &str = "\
What a change of one endpoint costs where there are many.

  cargo bench -p chaos-tests --bench endpoints -- [options]

Without options: a host that knows 1000 services with 5000 endpoints on one network, and has 20 tasks of its own there,
is told of 1000 changes, one after the other: endpoints that are added, removed, moved to another host, and found
unhealthy. Measured is the time from the arrival of the agent's message to the last kernel operation, names included,
and the private memory that all this takes. It needs root: everything happens in network namespaces of its own.

  --services N     services (default 1000)
  --endpoints N    their endpoints (default 5000)
  --tasks N        tasks of the host on that network (default 20)
  --changes N      changes that are measured (default 1000)
  --simulate       instead: hosts that all carry one network, in virtual time, from the report of a task that runs to the
                   arrival of the news at the last agent; and the real time that a manager computes for each change
  --hosts N        with --simulate: hosts (default 1000)
  --seed N         with --simulate: of the randomness (default 1)
  --help           this text
";

struct Options {
    services: usize,
    endpoints: usize,
    tasks: usize,
    changes: usize,
    simulate: bool,
    hosts: usize,
    seed: u64,
}

fn main() -> ExitCode {
    let defaults =
        Options { services: 1000, endpoints: 5000, tasks: 20, changes: 1000, simulate: false, hosts: 1000, seed: 1 };
    run(
        HELP,
        defaults,
        |options, argument| match argument.name().as_str() {
            "--services" => argument.count().map(|number| options.services = number),
            "--endpoints" => argument.count().map(|number| options.endpoints = number),
            "--tasks" => argument.count().map(|number| options.tasks = number),
            "--changes" => argument.count().map(|number| options.changes = number),
            "--hosts" => argument.count().map(|number| options.hosts = number),
            "--seed" => argument.number().map(|number| options.seed = number),
            "--simulate" => {
                options.simulate = true;
                Ok(())
            }
            _ => argument.unknown(),
        },
        measure,
    )
}

fn measure(options: &Options) -> Result<Report> {
    if options.simulate { simulated::measure(options) } else { host::measure(options) }
}
