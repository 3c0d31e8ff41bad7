(() => {
  const end = (log) => log.scrollHeight - log.clientHeight;
  const local = (scrolled) => {
    for (const time of document.querySelectorAll("time")) {
      time.title = time.textContent;
      time.textContent = new Date(time.dateTime).toLocaleString();
    }
    const log = document.querySelector(".log");
    if (log) log.scrollTop = scrolled ?? end(log);
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
        const log = document.querySelector(".log");
        const scrolled = log && log.scrollTop < end(log) - 4 ? log.scrollTop : undefined;
        live.replaceWith(page.getElementById("live"));
        local(scrolled);
      }
    } finally {
      setTimeout(again, 3000);
    }
  };
  setTimeout(again, 3000);
})();
