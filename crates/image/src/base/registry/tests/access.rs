//! Who is let in: every kind of login, what a refusal says, and to whom a password never goes.

use super::*;
use crate::base::registry::login::tests::secret;

const PASSWORD: &str = "hush-hush";

fn login() -> Login {
    Login::Password(Credentials { username: "me".into(), password: PASSWORD.into() })
}

fn basic(username: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}")))
}

fn authorization(asked: &Asked) -> &str {
    asked.headers.get("authorization").map_or("", String::as_str)
}

/// A registry that lets in who sends `wanted`, with the challenge that `challenge` makes of its address.
fn guarded(
    wanted: &str,
    challenge: impl Fn(&str) -> String + Send + Sync + 'static,
    token: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
) -> String {
    let (content, wanted) = (content("1"), wanted.to_owned());
    let address = Arc::new(Mutex::new(String::new()));
    let own = address.clone();
    let served = serve(move |asked| {
        if asked.path.starts_with("/token") {
            return token(asked);
        }
        if authorization(asked) != wanted {
            let challenge = challenge(&own.lock().unwrap());
            return Answer::new(401, "{}").header("www-authenticate", challenge);
        }
        answer(&content, "a/b", asked)
    });
    address.lock().unwrap().clone_from(&served);
    served
}

fn bearer(address: &str) -> String {
    format!(r#"Bearer realm="http://{address}/token",service="here",scope="repository:a/b:pull""#)
}

fn no_tokens(_: &Asked) -> Answer {
    Answer::new(500, "{}")
}

#[tokio::test]
async fn a_token_for_anybody() {
    let address = guarded("Bearer t", bearer, |asked| {
        assert_eq!(authorization(asked), "");
        assert!(
            asked.path.contains("scope=repository%3Aa/b%3Apull") && asked.path.contains("service=here"),
            "{}",
            asked.path
        );
        Answer::new(200, r#"{"access_token":"t"}"#)
    });
    let world = world(RegistryConfig::default());
    assert_eq!(world.get(&format!("{address}/a/b:1")).await.unwrap().layers.len(), 3);
}

#[tokio::test]
async fn a_token_for_a_password_and_a_password_alone() {
    let token = guarded("Bearer t", bearer, |asked| match authorization(asked) == basic("me", PASSWORD) {
        true => Answer::new(200, r#"{"token":"t"}"#),
        false => Answer::new(401, "{}"),
    });
    let plain = guarded(&basic("me", PASSWORD), |_| r#"Basic realm="x""#.into(), no_tokens);
    for address in [token, plain] {
        let world = world(RegistryConfig::default());
        let reference = format!("{address}/a/b:1");
        assert_eq!(world.get_as(&reference, &login()).await.unwrap().layers.len(), 3);
    }
}

#[tokio::test]
async fn refusals_name_the_mend_and_not_the_password() {
    let basic_only = || guarded("Basic other", |_| r#"Basic realm="x""#.into(), no_tokens);
    let token = || guarded("Bearer t", bearer, |_| Answer::new(401, "{}"));
    for address in [basic_only(), token()] {
        let world = world(RegistryConfig::default());
        let reference = format!("{address}/a/b:1");
        let wrong = world.get_as(&reference, &login()).await.unwrap_err();
        let text = wrong.to_string();
        assert!(matches!(wrong, ImageError::Denied { .. }), "{text}");
        assert!(text.contains("refused the credentials") && text.contains("Check the Secret"), "{text}");
        assert!(!text.contains(PASSWORD) && !text.contains(&basic("me", PASSWORD)), "{text}");
        let missing = world.get(&reference).await.unwrap_err().to_string();
        assert!(missing.contains("from_registry(..., secret=...)"), "{missing}");
        assert!(
            missing.contains("credentials it asks for") && !missing.contains("reachable from"),
            "{missing}"
        );
        assert_eq!(world.files(), 0);
    }
}

#[tokio::test]
async fn a_login_that_is_refused_is_not_made_up_for_by_another_source() {
    let address = guarded("Basic other", |_| r#"Basic realm="x""#.into(), no_tokens);
    let rename = [("docker.io/library".to_owned(), format!("{address}/a"))].into();
    let config = BaseConfig {
        order: vec![BaseSource::Registry, BaseSource::Local],
        registry: RegistryConfig { rename, ..RegistryConfig::default() },
        ..BaseConfig::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let bases = Bases::new(config, tools(folder.path(), Arc::new(FakeBuilder::default())));
    let error = bases.resolve("b:1", Some(&login()), false, &NoLog).await.unwrap_err();
    // What stands for a registry is another host: it was asked without the password.
    let text = error.to_string();
    assert!(text.contains("access refused") && !text.contains("refused the credentials"), "{text}");
    assert!(matches!(error, ImageError::Denied { .. }), "{text}");
}

#[tokio::test]
async fn a_password_stays_with_the_host_that_was_asked() {
    let blobs = content("1");
    // The store that the registry redirects to. It fails the test if it ever sees who asks.
    let storage = serve(move |asked| {
        assert_eq!(authorization(asked), "", "{}", asked.path);
        answer(&blobs, "a/b", asked)
    });
    let manifests = content("1");
    let address = serve(move |asked| {
        if authorization(asked) != basic("me", PASSWORD) {
            return Answer::new(401, "{}").header("www-authenticate", r#"Basic realm="x""#);
        }
        if asked.path.contains("/blobs/") {
            return Answer::new(307, "").header("location", format!("http://{storage}{}", asked.path));
        }
        answer(&manifests, "a/b", asked)
    });
    let world = world(RegistryConfig::default());
    assert_eq!(world.get_as(&format!("{address}/a/b:1"), &login()).await.unwrap().layers.len(), 3);
}

#[tokio::test]
async fn a_host_that_is_redirected_to_gets_no_password_by_asking_for_it() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let own = Arc::new(Mutex::new(String::new()));
    let realm = own.clone();
    let thief = serve(move |asked| {
        kept.lock().unwrap().push(authorization(asked).to_owned());
        let challenge = bearer(&realm.lock().unwrap());
        Answer::new(401, "{}").header("www-authenticate", challenge)
    });
    own.lock().unwrap().clone_from(&thief);
    let address =
        serve(move |asked| Answer::new(307, "").header("location", format!("http://{thief}{}", asked.path)));
    let world = world(RegistryConfig::default());
    let error = world.get_as(&format!("{address}/a/b:1"), &login()).await.unwrap_err().to_string();
    assert!(error.contains("refused the credentials"), "{error}");
    assert!(seen.lock().unwrap().iter().all(String::is_empty));
}

#[tokio::test]
async fn a_mirror_gets_no_password() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let mirror = serve(move |asked| {
        kept.lock().unwrap().push(authorization(asked).to_owned());
        Answer::new(401, "{}").header("www-authenticate", r#"Basic realm="x""#)
    });
    let address = guarded(&basic("me", PASSWORD), |_| r#"Basic realm="x""#.into(), no_tokens);
    let mirrors = [(address.clone(), vec![format!("http://{mirror}")])].into();
    let world = world(RegistryConfig { mirrors, ..RegistryConfig::default() });
    assert_eq!(world.get_as(&format!("{address}/a/b:1"), &login()).await.unwrap().layers.len(), 3);
    let seen = seen.lock().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(String::is_empty), "{seen:?}");
}

#[tokio::test]
async fn a_token_that_ends_before_the_layers_is_asked_for_again() {
    let content = content("1");
    let address = Arc::new(Mutex::new(String::new()));
    let (own, tokens) = (address.clone(), Arc::new(AtomicUsize::new(0)));
    let given = tokens.clone();
    let served = serve(move |asked| {
        if asked.path.starts_with("/token") {
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            return Answer::new(200, format!(r#"{{"token":"{number}"}}"#));
        }
        // The second token is the first that opens layers.
        let layer = asked.path.contains("/blobs/");
        let wanted = if layer && given.load(Ordering::SeqCst) < 2 { "Bearer 2" } else { "Bearer 1" };
        let let_in = authorization(asked) == wanted || authorization(asked) == "Bearer 2";
        if !let_in {
            return Answer::new(401, "{}").header("www-authenticate", bearer(&own.lock().unwrap()));
        }
        answer(&content, "a/b", asked)
    });
    address.lock().unwrap().clone_from(&served);
    let world = world(RegistryConfig::default());
    assert_eq!(world.get(&format!("{served}/a/b:1")).await.unwrap().layers.len(), 3);
    assert!(tokens.load(Ordering::SeqCst) >= 2);
}

fn aws(endpoint: &str) -> Login {
    Login::from_secret(
        LoginKind::Aws,
        &secret(&[
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", PASSWORD),
            ("AWS_SESSION_TOKEN", "hush-session"),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ENDPOINT_URL", endpoint),
        ]),
    )
    .unwrap()
}

#[tokio::test]
async fn aws_keys_are_exchanged_for_a_password() {
    use base64::Engine as _;
    let api = serve(|asked| {
        let header = |name: &str| asked.headers.get(name).cloned().unwrap_or_default();
        assert_eq!(header("x-amz-target"), "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken");
        assert_eq!(header("x-amz-security-token"), "hush-session");
        let authorization = header("authorization");
        assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"), "{authorization}");
        assert!(authorization.contains("/eu-west-1/ecr/aws4_request"), "{authorization}");
        let token = base64::engine::general_purpose::STANDARD.encode("AWS:given");
        Answer::new(
            200,
            format!(r#"{{"authorizationData":[{{"authorizationToken":"{token}","expiresAt":1}}]}}"#),
        )
    });
    let address = guarded(&basic("AWS", "given"), |_| r#"Basic realm="x""#.into(), no_tokens);
    let world = world(RegistryConfig::default());
    let login = aws(&format!("http://{api}"));
    assert_eq!(world.get_as(&format!("{address}/a/b:1"), &login).await.unwrap().layers.len(), 3);
}

#[tokio::test]
async fn aws_says_why_it_refuses() {
    let api = serve(|_| {
        let words = r#"{"__type":"com.amazon#InvalidSignatureException","message":"The signature is wrong.\nhush-session"}"#;
        Answer::new(400, words)
    });
    let world = world(RegistryConfig::default());
    let error =
        world.get_as("127.0.0.1:1/a/b:1", &aws(&format!("http://{api}"))).await.unwrap_err().to_string();
    assert!(error.contains("InvalidSignatureException: The signature is wrong."), "{error}");
    assert!(error.contains("ecr:GetAuthorizationToken") && !error.contains("hush"), "{error}");
}
