//! Images and the names that they are published under.

use super::*;

pub(super) async fn images(store: &Store) {
    let mut ids = Ids::new();
    let id: ImageId = ids.make();
    let image = ImageRow {
        id,
        recipe_digest: "r".to_owned(),
        state: ImageState::Building,
        built: String::new(),
        builder: Some(ids.make()),
        error: String::new(),
        created_at: NOW,
        used_at: UnixMs(1),
        updated_at: NOW,
        recipe: vec![1],
        metadata: vec![],
    };
    put(store, ImageWrite::Put(image.clone())).await;
    assert_eq!(store.images().building().await.unwrap(), vec![image.clone()]);
    let ready = ImageRow { state: ImageState::Ready, built: "{\"layers\":[\"é\"]}".to_owned(), ..image };
    put(store, ImageWrite::Put(ready.clone())).await;
    assert!(store.images().building().await.unwrap().is_empty());
    assert_eq!(store.images().by_recipe("r".to_owned()).await.unwrap(), Some(ready.clone()));
    let builder = ready.builder.unwrap();
    assert_eq!(store.images().by_builder(builder).await.unwrap(), Some(ready.clone()));
    assert_eq!(store.images().recent(5).await.unwrap(), vec![ready]);
    names_of_images(store, &mut ids, id).await;
    put(store, ImageWrite::Delete { id }).await;
    assert_eq!(store.images().by_id(id).await.unwrap(), None);
}

async fn names_of_images(store: &Store, ids: &mut Ids, image: ImageId) {
    let (environment, other): (EnvironmentId, ImageId) = (ids.make(), ids.make());
    let publish = |name: &str, image, at| ImageNameWrite::Publish {
        environment,
        name: name.to_owned(),
        image,
        at: UnixMs(at),
        by: "w".to_owned(),
    };
    for (name, image, at) in [("a:1", image, 1), ("a:1", other, 2), ("a:1", image, 3), ("b:1", other, 4)] {
        put(store, publish(name, image, at)).await;
    }
    let names = store.image_names();
    let current = names.current(environment, "a:1".to_owned()).await.unwrap().unwrap();
    assert_eq!((current.number, current.image_id), (3, image));
    let page = names.history(environment, "a:1".to_owned(), None, 2).await.unwrap();
    assert_eq!(page.iter().map(|row| row.number).collect::<Vec<_>>(), [3, 2]);
    let page = names.history(environment, "a:1".to_owned(), Some(2), 2).await.unwrap();
    assert_eq!(page.iter().map(|row| row.number).collect::<Vec<_>>(), [1]);
    let list = async |prefix: &str, image, after: &str| {
        let rows = names.list(environment, prefix.to_owned(), image, after.to_owned(), 10).await.unwrap();
        rows.into_iter().map(|(row, first)| (row.name, row.published_at.0, first.0)).collect::<Vec<_>>()
    };
    let (a, b) = (("a:1".to_owned(), 3, 1), ("b:1".to_owned(), 4, 4));
    assert_eq!(list("", None, "").await, [a.clone(), b.clone()]);
    assert_eq!(list("", None, "a:1").await, std::slice::from_ref(&b));
    assert_eq!(list("b", None, "").await, std::slice::from_ref(&b));
    assert_eq!(list("", Some(other), "").await, [b], "of an image count the names that mean it now");
    put(store, ImageNameWrite::Delete { environment, name: "b:1".to_owned() }).await;
    assert_eq!(list("", None, "").await, [a]);
    // An image takes what it was published as along; what was published before counts again.
    put(store, ImageWrite::Delete { id: image }).await;
    let left = names.current(environment, "a:1".to_owned()).await.unwrap().unwrap();
    assert_eq!(left.image_id, other);
    put(store, EnvironmentWrite::Delete { id: environment, at: NOW }).await;
    assert!(names.current(environment, "a:1".to_owned()).await.unwrap().is_none());
}
