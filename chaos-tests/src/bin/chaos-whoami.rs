//! The service that tests run: as in the demo, but small, since each host unpacks it for each test.

use std::process::ExitCode;

fn main() -> ExitCode {
    node::demo::whoami::main()
}
