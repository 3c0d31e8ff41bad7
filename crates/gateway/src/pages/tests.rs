//! What the pages look like to a browser that runs no scripts, and what they must never contain.

use super::*;
use crate::UrlSigner;
use evoke_core::SystemClock;
use http_body_util::BodyExt;
use std::sync::Arc;

async fn read(response: Response<HttpBody>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn row(name: &str) -> AppRow {
    AppRow {
        id: AppId::from_bits(3),
        name: name.into(),
        environment: "main".into(),
        state: "running".into(),
        created: UnixMs(1_767_225_599_000),
        stopped: None,
        containers: 2,
    }
}

fn page(evil: &str) -> AppPage {
    let at = UnixMs(1_767_225_599_000);
    AppPage {
        app: row(evil),
        functions: vec![FunctionRow {
            id: FunctionId::from_bits(1),
            name: evil.into(),
            image: Some(ImageId::from_bits(7)),
            containers: 1,
            queued: 0,
            running: 3,
            succeeded: 4,
            failed: 5,
        }],
        calls: vec![CallRow {
            id: CallId::from_bits(1),
            function: evil.into(),
            created: at,
            finished: Some(at.plus_ms(61_000)),
            inputs: 9,
            succeeded: 8,
            failed: 1,
        }],
        containers: vec![ContainerRow {
            id: TaskId::from_bits(1),
            function: evil.into(),
            state: "ready".into(),
            created: at,
            start_ms: Some(250),
            ended: None,
            outcome: evil.into(),
        }],
        logs: vec![LogLine { at, task: Some(TaskId::from_bits(1)), error: true, text: evil.into() }],
    }
}

fn an_image(text: &str) -> ImagePage {
    let package = |before: Option<&str>, after: Option<&str>| PackageRow {
        name: "six".into(),
        before: before.map(str::to_owned),
        after: after.map(str::to_owned),
    };
    ImagePage {
        id: ImageId::from_bits(7),
        state: "ready".into(),
        created: UnixMs(1_767_225_599_000),
        names: vec![text.into()],
        python: Some("Python 3.11.2".into()),
        error: text.into(),
        layers: vec![LayerRow {
            step: text.into(),
            took_ms: 1_200,
            bytes: 67_000_000,
            added: 3,
            changed: 2,
            removed: 1,
            packages: vec![
                package(None, Some("1.0")),
                package(Some("1.0"), Some("2.0")),
                package(Some("2.0"), None),
            ],
        }],
    }
}

#[tokio::test]
async fn the_image_page_shows_what_each_layer_brought() {
    let text = read(image(&an_image("RUN pip install six"))).await;
    let parts = [
        "RUN pip install six",
        "67.0 MB",
        "1.2 s",
        "Python 3.11.2",
        "+ six 1.0",
        "~ six 1.0 → 2.0",
        "− six 2.0",
    ];
    for part in parts {
        assert!(text.contains(part), "{part}");
    }
}

#[tokio::test]
async fn nothing_of_a_users_becomes_markup() {
    let evil = "<script>alert(1)</script>\"'&\u{1b}[31m";
    let signer = UrlSigner::new(&[1; 32], Arc::new(SystemClock));
    let text = read(app(&page(evil), &signer, "http://h")).await;
    assert!(!text.contains("<script>alert"));
    assert!(text.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;\u{FFFD}[31m"));
    assert!(text.contains("href=\"http://h/images/im-0000000000000000000007?until="));
    let text = read(image(&an_image(evil))).await;
    assert!(!text.contains("<script>alert") && text.contains("&lt;script&gt;alert(1)"));
    let text = read(home(&[row(evil)], &signer, "http://h")).await;
    assert!(!text.contains("<script>alert"));
    assert!(text.contains("href=\"http://h/apps/ap-0000000000000000000003?until="));
}

#[tokio::test]
async fn the_app_page_shows_everything_without_scripts() {
    let signer = UrlSigner::new(&[1; 32], Arc::new(SystemClock));
    let text = read(app(&page("hello"), &signer, "http://h")).await;
    for part in [
        "hello",
        "2025-12-31 23:59:59 UTC",
        "1 min 1 s",
        "250 ms",
        "23:59:59",
        "fc-",
        "ta-",
        "failed",
        "ready",
    ] {
        assert!(text.contains(part), "{part}");
    }
    assert!(text.contains("<span class=\"err\">hello</span>"));
}

#[tokio::test]
async fn a_page_runs_no_script_but_ours_and_names_its_address_to_nobody() {
    let signer = UrlSigner::new(&[1; 32], Arc::new(SystemClock));
    let response = app(&page("x"), &signer, "http://h");
    let policy = response.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'") && policy.contains("script-src 'sha256-"));
    assert_eq!(response.headers()["referrer-policy"], "no-referrer");
    assert_eq!(response.headers()["cache-control"], "no-store");
}

#[test]
fn dates_are_right_around_leap_days() {
    for (seconds, expected) in [
        (0, "1970-01-01 00:00:00"),
        (951_782_399, "2000-02-28 23:59:59"),
        (951_782_400, "2000-02-29 00:00:00"),
        (951_868_800, "2000-03-01 00:00:00"),
        (1_709_251_199, "2024-02-29 23:59:59"),
        (4_107_542_400, "2100-03-01 00:00:00"),
    ] {
        assert_eq!(html::utc(UnixMs(seconds * 1000)), expected);
    }
}

#[test]
fn paths_of_pages() {
    assert_eq!(route("/"), Some(Page::Home));
    assert_eq!(route("/apps/ap-0000000000000000000003"), Some(Page::App(AppId::from_bits(3))));
    assert_eq!(route("/images/im-0000000000000000000003"), Some(Page::Image(ImageId::from_bits(3))));
    assert_eq!(route("/images/x"), None);
    assert_eq!(route("/apps/x"), None);
    assert_eq!(route("/blobs/x"), None);
}
