//! The cluster library, tested against its documentation and Node's. This program is the primary of
//! every test. Started by a test, it is a worker: a puppet that follows the test's orders.

mod claims;
mod dispatch;
mod ending;
mod events;
mod failing;
mod handles;
mod leaving;
mod listening;
mod messages;
#[path = "../common/missing.rs"]
mod missing;
mod opening;
mod paths;
#[path = "../common/ports.rs"]
mod ports;
mod puppet;
mod settings;
mod sharing;
mod stage;
mod steering;
mod supervision;
mod tricks;
mod udp;
#[path = "../common/wait.rs"]
mod wait;

use std::process::ExitCode;

use libtest_mimic::Arguments;

/// Names tests after their functions.
macro_rules! trials {
    ($($test:ident),* $(,)?) => {
        /// Every test in this file.
        pub(crate) fn trials() -> Vec<libtest_mimic::Trial> {
            vec![$(libtest_mimic::Trial::test(stringify!($test), || {
                $test();
                Ok(())
            })),*]
        }
    };
}

pub(crate) use trials;

fn main() -> ExitCode {
    if clusterlb::is_worker() {
        return puppet::main();
    }
    if let Some(code) = stage::separate_primary() {
        return code;
    }
    stage::hide_panics_on_purpose();
    let arguments = Arguments::from_args();
    let trials = [
        claims::trials(),
        dispatch::trials(),
        ending::trials(),
        events::trials(),
        failing::trials(),
        handles::trials(),
        leaving::trials(),
        listening::trials(),
        messages::trials(),
        steering::trials(),
        opening::trials(),
        paths::trials(),
        settings::trials(),
        sharing::trials(),
        supervision::trials(),
        udp::trials(),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}
