//! Tables of the container's life: each row is what happens and what must follow.

use super::*;
use Action::*;
use proptest::prelude::*;

const T0: UnixMs = UnixMs(1_000_000);
const STARTUP_MS: u64 = 60_000;

fn accepted(commits: bool) -> Lifecycle {
    let (life, first) = Lifecycle::accept(T0, STARTUP_MS, commits);
    assert_eq!(first, [Start]);
    life
}

fn play(life: &mut Lifecycle, rows: &[(u64, Event, &[Action])]) {
    for (n, (ms, event, expected)) in rows.iter().enumerate() {
        let actions = life.step(event.clone(), T0.plus_ms(*ms)).unwrap();
        assert_eq!(&actions, expected, "row {n}: {event:?}");
    }
}

fn running() -> Lifecycle {
    let mut life = accepted(false);
    play(
        &mut life,
        &[
            (10, Event::Started, &[Report(Phase::Slot), RecordDescriptors]),
            (11, Event::Recorded, &[Spawn]),
            (12, Event::Spawned, &[Report(Phase::Exec)]),
        ],
    );
    life
}

/// Running, and the program has said hello.
fn greeted() -> Lifecycle {
    let mut life = running();
    life.step(Event::Hello, T0).unwrap();
    life
}

const ENDING: &[(u64, Event, &[Action])] = &[
    (90_000, Event::Drained, &[Remove]),
    (90_001, Event::Lost, &[]),
    (90_002, Event::Removed, &[Finish]),
    (90_003, Event::Finished, &[Report(Phase::Removed), ReportExit, Forget]),
];

#[test]
fn a_whole_life() {
    let mut life = running();
    play(
        &mut life,
        &[
            (300, Event::Hello, &[Report(Phase::Hello)]),
            (310, Event::Hello, &[]),
            (400, Event::Ready, &[Report(Phase::Ready), SaveRecord]),
            (500, Event::Ready, &[]),
            (9_000, Event::Exited(Exit::Code(0)), &[Report(Phase::Exited), SaveRecord, Drain]),
        ],
    );
    play(&mut life, ENDING);
    assert_eq!(life.state(), State::Gone);
    assert_eq!((life.exit, life.ended_by_us), (Some(Exit::Code(0)), None));
}

#[test]
fn every_failed_step_of_a_start_removes_the_container() {
    let failed = || Event::Failed(Error::internal("no room"));
    for done in [&[][..], &[Event::Started][..], &[Event::Started, Event::Recorded][..]] {
        let mut life = accepted(false);
        for event in done {
            life.step(event.clone(), T0).unwrap();
        }
        play(&mut life, &[(1, failed(), &[Remove]), (2, Event::Removed, &[Finish])]);
        assert_eq!(life.failure.as_ref().map(|e| e.message.as_str()), Some("no room"));
        assert_eq!(life.step(Event::Finished, T0).unwrap(), [Report(Phase::Removed), ReportExit, Forget]);
    }
}

#[test]
fn a_stop_during_the_start_ends_it_at_the_next_step() {
    for how in [Stop::Kill, Stop::Interrupt { grace_ms: 5_000 }] {
        let mut life = accepted(false);
        play(&mut life, &[(1, Event::Stop(how), &[Report(Phase::Stopping)]), (2, Event::Started, &[Remove])]);

        let mut life = accepted(false);
        life.step(Event::Started, T0).unwrap();
        play(
            &mut life,
            &[(1, Event::Stop(how), &[Report(Phase::Stopping)]), (2, Event::Recorded, &[Remove])],
        );

        let mut life = accepted(false);
        life.step(Event::Started, T0).unwrap();
        life.step(Event::Recorded, T0).unwrap();
        play(
            &mut life,
            &[
                (1, Event::Stop(how), &[Report(Phase::Stopping)]),
                (2, Event::Spawned, &[Report(Phase::Exec), Kill]),
                (3, Event::Exited(Exit::Signal(9)), &[Report(Phase::Exited), SaveRecord, Drain]),
            ],
        );
        assert_eq!(life.ended_by_us, Some(Ended::Asked));
    }
}

#[test]
fn an_interrupt_becomes_a_kill_after_its_grace() {
    let mut life = greeted();
    life.step(Event::Ready, T0).unwrap();
    assert_eq!(life.deadline(), None);
    play(
        &mut life,
        &[
            (
                1_000,
                Event::Stop(Stop::Interrupt { grace_ms: 30_000 }),
                &[Report(Phase::Stopping), Interrupt, SaveRecord],
            ),
            // A second request shortens the grace, and a later one never lengthens it.
            (2_000, Event::Stop(Stop::Interrupt { grace_ms: 10_000 }), &[SaveRecord]),
            (3_000, Event::Stop(Stop::Interrupt { grace_ms: 90_000 }), &[SaveRecord]),
        ],
    );
    assert_eq!(life.deadline(), Some(T0.plus_ms(12_000)));
    play(
        &mut life,
        &[
            (11_999, Event::DeadlinePassed, &[]),
            (12_000, Event::DeadlinePassed, &[Kill]),
            (12_001, Event::Stop(Stop::Kill), &[]),
        ],
    );
    // A process that survives even that is removed with its container.
    assert_eq!(life.deadline(), Some(T0.plus_ms(12_000 + KILL_WAIT_MS)));
    play(&mut life, &[(17_000, Event::DeadlinePassed, &[Report(Phase::Exited), Drain])]);
    play(&mut life, ENDING);
    assert_eq!(life.exit, None);
}

#[test]
fn before_hello_there_is_nothing_to_be_graceful_about() {
    let mut life = running();
    play(
        &mut life,
        &[
            (1_000, Event::Stop(Stop::Interrupt { grace_ms: 30_000 }), &[Report(Phase::Stopping), Kill]),
            (1_001, Event::Stop(Stop::Interrupt { grace_ms: 30_000 }), &[]),
            (1_002, Event::Hello, &[Report(Phase::Hello)]),
            (1_003, Event::Exited(Exit::Signal(9)), &[Report(Phase::Exited), SaveRecord, Drain]),
        ],
    );
    assert_eq!(life.ended_by_us, Some(Ended::Asked));
}

#[test]
fn an_exit_within_the_grace_needs_no_kill() {
    let mut life = greeted();
    life.step(Event::Stop(Stop::Interrupt { grace_ms: 30_000 }), T0).unwrap();
    play(
        &mut life,
        &[
            (500, Event::Exited(Exit::Code(0)), &[Report(Phase::Exited), SaveRecord, Drain]),
            (40_000, Event::DeadlinePassed, &[]),
        ],
    );
    assert!(!life.was_killed());
}

#[test]
fn not_ready_in_time_means_killed() {
    let mut life = running();
    life.step(Event::Hello, T0).unwrap();
    assert_eq!(life.deadline(), Some(T0.plus_ms(STARTUP_MS)));
    play(
        &mut life,
        &[
            (STARTUP_MS, Event::DeadlinePassed, &[Report(Phase::Stopping), Kill]),
            (STARTUP_MS + 1, Event::Exited(Exit::Signal(9)), &[Report(Phase::Exited), SaveRecord, Drain]),
        ],
    );
    assert_eq!(life.ended_by_us, Some(Ended::StartupTimeout));

    // Also where the runtime itself takes too long.
    let mut life = accepted(false);
    play(
        &mut life,
        &[
            (STARTUP_MS, Event::DeadlinePassed, &[Report(Phase::Stopping)]),
            (STARTUP_MS + 9, Event::Started, &[Remove]),
        ],
    );
    assert_eq!(life.deadline(), None);
}

#[test]
fn only_a_clean_end_of_its_own_is_committed() {
    let commit: &[Action] = &[Commit];
    let remove: &[Action] = &[Remove];
    for (exit, stop, next) in [
        (Exit::Code(0), false, commit),
        (Exit::Code(1), false, remove),
        (Exit::Signal(9), false, remove),
        (Exit::Code(0), true, remove),
    ] {
        let mut life = accepted(true);
        for event in [Event::Started, Event::Recorded, Event::Spawned] {
            life.step(event, T0).unwrap();
        }
        if stop {
            life.step(Event::Stop(Stop::Interrupt { grace_ms: 1 }), T0).unwrap();
        }
        life.step(Event::Exited(exit), T0).unwrap();
        assert_eq!(life.step(Event::Drained, T0).unwrap(), next, "{exit:?} {stop}");
    }
}

#[test]
fn a_failed_commit_is_reported_and_the_container_removed() {
    let mut life = accepted(true);
    for event in
        [Event::Started, Event::Recorded, Event::Spawned, Event::Exited(Exit::Code(0)), Event::Drained]
    {
        life.step(event, T0).unwrap();
    }
    play(&mut life, &[(1, Event::Failed(Error::internal("disk full")), &[Remove])]);
    assert_eq!(life.failure.as_ref().map(|e| e.message.as_str()), Some("disk full"));
}

#[test]
fn a_lost_guest_ends_the_container() {
    let mut life = running();
    play(&mut life, &[(5, Event::Lost, &[Report(Phase::Exited), Drain])]);
    play(&mut life, ENDING);
}

#[test]
fn an_adopted_container_goes_on_where_it_was() {
    let adopt = |known| Lifecycle::adopt(T0, STARTUP_MS, false, known);
    let ready = Known { ready: true, ..Known::default() };
    let asked = Known { ended_by_us: Some(Ended::Asked), ..ready };
    for (known, state, first, deadline) in [
        (ready, State::Running, &[][..], None),
        (Known::default(), State::Running, &[], Some(T0.plus_ms(STARTUP_MS))),
        (Known { kill_at: Some(T0.plus_ms(7)), ..asked }, State::Running, &[], Some(T0.plus_ms(7))),
        (asked, State::Running, &[], Some(T0)),
        (Known { exit: Some(Exit::Code(3)), ..ready }, State::Draining, &[Drain], None),
    ] {
        let (life, actions) = adopt(known);
        assert_eq!(
            (life.state(), actions.as_slice(), life.deadline()),
            (state, first, deadline),
            "{known:?}"
        );
    }
    let (mut life, _) = adopt(Known::default());
    play(&mut life, &[(1, Event::Failed(Error::internal("it never ran")), &[Remove])]);
}

#[test]
fn what_cannot_happen_is_refused() {
    let mut life = accepted(false);
    for event in [Event::Spawned, Event::Removed, Event::Drained, Event::Exited(Exit::Code(0))] {
        let refused = life.step(event.clone(), T0).unwrap_err();
        assert_eq!(refused, IllegalTransition { state: State::Preparing, event });
    }
}

/// What an executor may report for an action: its success or its failure.
fn outcome(action: &Action, fails: bool) -> Option<Event> {
    let success = match action {
        Start => Event::Started,
        RecordDescriptors => Event::Recorded,
        Spawn => Event::Spawned,
        Drain => Event::Drained,
        Commit => Event::Committed,
        Remove => Event::Removed,
        Finish => Event::Finished,
        _ => return None,
    };
    Some(if fails { Event::Failed(Error::internal("failed")) } else { success })
}

proptest! {
    /// Whatever happens in whatever order: the container ends once told to, everything is removed, reported
    /// and forgotten exactly once, in that order, and nothing illegal happens.
    #[test]
    fn every_life_ends_and_releases_everything(
        commits: bool,
        noise in proptest::collection::vec((0u8..8, 0u64..40_000, any::<bool>()), 0..40),
    ) {
        let (mut life, mut todo) = Lifecycle::accept(T0, STARTUP_MS, commits);
        let (mut now, mut log, mut noise) = (T0, Vec::new(), noise.into_iter());
        let mut pending: Option<Action> = None;
        for _ in 0..400 {
            for action in todo.drain(..) {
                if outcome(&action, false).is_some() {
                    prop_assert!(pending.is_none(), "two actions at a time: {:?} {:?}", pending, action);
                    pending = Some(action.clone());
                }
                log.push(action);
            }
            if life.state() == State::Gone {
                break;
            }
            let (kind, ms, fails) = noise.next().unwrap_or((9, 60_000, false));
            now = now.plus_ms(ms);
            let event = match kind {
                0 => Event::Hello,
                1 => Event::Ready,
                2 => Event::Stop(Stop::Interrupt { grace_ms: ms }),
                3 => Event::Stop(Stop::Kill),
                4 => Event::Lost,
                5 if life.state() == State::Running => Event::Exited(Exit::Code(0)),
                5 | 6 => Event::DeadlinePassed,
                9 if pending.is_none() && life.deadline().is_none() => Event::Stop(Stop::Kill),
                _ => match pending.take() {
                    Some(action) => outcome(&action, fails).unwrap(),
                    None => Event::DeadlinePassed,
                },
            };
            todo = life.step(event, now).unwrap();
        }
        prop_assert_eq!(life.state(), State::Gone);
        let place = |wanted: &Action| {
            let places: Vec<_> = log.iter().enumerate().filter(|(_, a)| *a == wanted).map(|(n, _)| n).collect();
            assert_eq!(places.len(), 1, "{wanted:?} in {log:?}");
            places[0]
        };
        prop_assert!(place(&Remove) < place(&Finish));
        prop_assert!(place(&Finish) < place(&ReportExit));
        prop_assert!(place(&ReportExit) < place(&Forget));
    }
}
