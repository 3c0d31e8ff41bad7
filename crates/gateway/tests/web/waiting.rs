//! Answers that take long: clients are sent away and ask again.

use super::world::{App, World};
use evoke_gateway::WebLimits;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::time::Duration;

fn slow(mut app: App) -> BoxFuture<'static, ()> {
    async move {
        if app.head.raw_path == "/never" {
            app.gone().await;
            return app.log.say("never: gone");
        }
        let Some(body) = app.read().await else { return };
        tokio::time::sleep(Duration::from_millis(250)).await;
        app.start(200, &[]).await;
        app.body(body, false).await;
        app.done().await;
    }
    .boxed()
}

fn short() -> WebLimits {
    WebLimits { answer: Duration::from_millis(100), ..WebLimits::default() }
}

#[tokio::test]
async fn who_waits_too_long_is_sent_away_until_the_answer_is_there() {
    let world = World::with_limits(slow, short()).await;
    let host = world.address;
    let request = format!("POST /slow?a=b HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\nhi");
    let mut answer = world.ask(&request).await;
    let mut times = 0;
    while answer.status == 303 {
        times += 1;
        let location = answer.header("location").unwrap().to_owned();
        let path = location.strip_prefix(&format!("http://{host}")).unwrap().to_owned();
        assert!(path.starts_with("/slow?a=b&__modal_function_call_id=fc-"), "{path}");
        answer = world.get(&path).await;
        if answer.status == 200 {
            // Who loads it again starts no new request.
            let again = world.get(&path).await;
            assert_eq!((again.status, again.text().as_str()), (200, "hi"));
        }
    }
    assert_eq!((answer.status, answer.text().as_str()), (200, "hi"));
    assert!(times >= 2, "{times}");
}

#[tokio::test]
async fn who_asks_for_nothing_that_waits_is_told_so() {
    let world = World::with_limits(slow, short()).await;
    for id in ["fc-0000000000000000000009", "", "nonsense", "%00"] {
        let answer = world.get(&format!("/slow?__modal_function_call_id={id}")).await;
        assert_eq!(answer.status, 404, "{id}");
    }
}

#[tokio::test]
async fn the_body_of_a_request_that_is_sent_away_was_read_whole() {
    let world = World::with_limits(slow, short()).await;
    let mut wire = world.connect().await;
    wire.send("POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nab").await;
    // Longer than the wait for an answer: it begins when the body is there.
    tokio::time::sleep(Duration::from_millis(200)).await;
    wire.send("cd").await;
    let mut answer = wire.answer().await;
    assert_eq!(answer.status, 303);
    while answer.status == 303 {
        let path = answer.header("location").unwrap().split_once("/slow").unwrap().1.to_owned();
        let path = format!("/slow{path}");
        answer = world.get(&path).await;
    }
    assert_eq!(answer.text(), "abcd");
}

/// The address where the answer of a request will be.
async fn sent_away(world: &World, target: &str) -> String {
    let answer = world.get(target).await;
    assert_eq!(answer.status, 303);
    answer.header("location").unwrap().strip_prefix(&format!("http://{}", world.address)).unwrap().to_owned()
}

fn long(mut app: App) -> BoxFuture<'static, ()> {
    async move {
        let Some(_) = app.read().await else { return };
        tokio::time::sleep(Duration::from_millis(300)).await;
        app.start(200, &[]).await;
        for _ in 0..3 {
            app.body("x".repeat(1 << 20), true).await;
        }
        app.body("", false).await;
        app.done().await;
    }
    .boxed()
}

fn patient() -> WebLimits {
    WebLimits { answer: Duration::from_millis(200), ..WebLimits::default() }
}

#[tokio::test]
async fn all_who_wait_for_an_answer_get_it() {
    let world = World::with_limits(slow, patient()).await;
    let path = sent_away(&world, "/slow").await;
    let (one, two, three) = tokio::join!(world.get(&path), world.get(&path), world.get(&path));
    assert_eq!([one.status, two.status, three.status], [200; 3]);
}

#[tokio::test]
async fn who_leaves_lets_the_next_go_on() {
    let world = World::with_limits(slow, patient()).await;
    let path = sent_away(&world, "/slow").await;
    let mut wire = world.connect().await;
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
    let answer = tokio::join!(world.get(&path), async { drop(wire) }).0;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_large_answer_is_given_once() {
    let world = World::with_limits(long, patient()).await;
    let path = sent_away(&world, "/").await;
    let mut answers = tokio::join!(world.get(&path), world.get(&path));
    if answers.0.status == 404 {
        std::mem::swap(&mut answers.0, &mut answers.1);
    }
    assert_eq!((answers.0.status, answers.0.text().len()), (200, 3 << 20));
    assert_eq!(answers.1.status, 404);
    assert!(answers.1.text().contains("No request waits"));
}

#[tokio::test]
async fn an_application_whose_client_does_not_come_back_is_told() {
    let limits = WebLimits { parked: Duration::from_millis(200), ..short() };
    let mut world = World::with_limits(slow, limits).await;
    let path = sent_away(&world, "/never").await;
    let again = world.get(&path).await;
    assert_eq!(again.status, 303);
    world.hears("never: gone").await;
    assert_eq!(world.get(&path).await.status, 404);
}
