document.documentElement.classList.add("js");
document.querySelectorAll(".slides").forEach(grid => {
  const menus = grid.previousElementSibling.querySelectorAll("select");
  const show = () => grid.querySelectorAll("img").forEach(image => {
    image.classList.toggle("left", image.dataset.m === menus[0].value);
    image.classList.toggle("right", image.dataset.m === menus[1].value);
  });
  menus.forEach(menu => menu.addEventListener("change", show));
  grid.addEventListener("input", event =>
    event.target.previousElementSibling.style.setProperty("--cut", event.target.value + "%"));
  show();
});
