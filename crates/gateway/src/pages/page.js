(() => {
  const local = () => {
    for (const time of document.querySelectorAll("time")) {
      time.title = time.textContent;
      time.textContent = new Date(time.dateTime).toLocaleString();
    }
    for (const log of document.querySelectorAll(".log")) log.scrollTop = log.scrollHeight;
  };
  local();
  const again = async () => {
    const live = document.getElementById("live");
    if (!live) return;
    try {
      const busy = document.hidden || String(getSelection());
      const answer = busy ? null : await fetch(location.href);
      if (answer && answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        live.replaceWith(page.getElementById("live"));
        local();
      }
    } finally {
      setTimeout(again, 3000);
    }
  };
  setTimeout(again, 3000);
})();
