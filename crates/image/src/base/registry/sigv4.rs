//! AWS's signature of a request, version 4.

use super::ecr::AwsKeys;
use crate::digest::sha256;
use crate::error::{ImageError, Result};
use evoke_core::UnixMs;
use evoke_core::hex;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// A POST to sign.
pub(super) struct Request<'a> {
    /// Where it goes; its path is `/` and it has no query.
    pub url: &'a str,
    /// Headers, in lower case and sorted; the host and those of the signature are added.
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
    pub keys: &'a AwsKeys,
    pub region: &'a str,
    pub service: &'a str,
    pub now: UnixMs,
}

/// All headers to send with it.
pub(super) fn sign(request: &Request<'_>) -> Result<Vec<(String, String)>> {
    let instant = i64::try_from(request.now.0)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .ok_or_else(|| ImageError::builder("sign a request", "this machine's clock is beyond all years"))?;
    let time = instant.strftime("%Y%m%dT%H%M%SZ").to_string();
    let date = time[..8].to_owned();
    let host = request.url.split('/').nth(2).unwrap_or_default().to_owned();
    let mut headers: Vec<(String, String)> =
        request.headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    headers.push(("x-amz-date".into(), time.clone()));
    if let Some(token) = &request.keys.session_token {
        headers.push(("x-amz-security-token".into(), token.clone()));
    }
    let mut signed = headers.clone();
    // The client's library sets it from the address.
    signed.push(("host".into(), host));
    signed.sort();
    let names = signed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
    let lines: String = signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let canonical = format!("POST\n/\n\n{lines}\n{names}\n{}", sha256(request.body));
    let scope = format!("{date}/{}/{}/aws4_request", request.region, request.service);
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let mut key = format!("AWS4{}", request.keys.secret_access_key).into_bytes();
    for part in [date.as_str(), request.region, request.service, "aws4_request"] {
        key = mac(&key, part.as_bytes())?;
    }
    let signature = hex(&mac(&key, text.as_bytes())?);
    let key_id = &request.keys.access_key_id;
    headers.push((
        "authorization".into(),
        format!("AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={names}, Signature={signature}"),
    ));
    Ok(headers)
}

fn mac(key: &[u8], text: &[u8]) -> Result<Vec<u8>> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key).map_err(|e| ImageError::builder("sign a request", e))?;
    mac.update(text);
    Ok(mac.finalize().into_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signatures as AWS's own library for Python makes them of the same request.
    #[test]
    fn signs_as_aws_does() {
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"),
        ];
        for (token, signature) in [
            (None, "ce953a52a1215175c49d9a611ae10b5db817f776f0ad5d2a6ff9b0198dd390bc"),
            (Some("SESSION/TOKEN=="), "2e2ff690674d0a88197622498198a28e0dc3e8aa88fa10e78a47e7b035e2407a"),
        ] {
            let keys = AwsKeys {
                access_key_id: "AKIDEXAMPLE".into(),
                secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
                session_token: token.map(str::to_owned),
                region: None,
                endpoint: None,
            };
            let sent = sign(&Request {
                url: "https://api.ecr.eu-west-1.amazonaws.com/",
                headers: &headers,
                body: b"{}",
                keys: &keys,
                region: "eu-west-1",
                service: "ecr",
                now: UnixMs(1_440_938_160_000),
            })
            .unwrap();
            let (_, authorization) = sent.last().unwrap();
            assert!(authorization.ends_with(&format!("Signature={signature}")), "{authorization}");
        }
    }
}
