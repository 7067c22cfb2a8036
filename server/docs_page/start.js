// A server with API keys sends this page to everybody, and its description only to those who have one.
const form = document.getElementById("key-form");
const field = document.getElementById("key");
const withKey = () => (field.value ? { Authorization: `Bearer ${field.value}` } : {});

async function start() {
  const answer = await fetch("openapi.json", { method: "HEAD", headers: withKey() });
  form.hidden = answer.status !== 401;
  document.getElementById("refused").hidden = !field.value;
  if (!form.hidden) return field.focus();
  SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    validatorUrl: null, // a foreign service
    requestInterceptor: (request) => {
      request.headers = { ...request.headers, ...withKey() };
      return request;
    },
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
start();
