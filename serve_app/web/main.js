// Starts the page.

import "./tabs.js";
import "./intake.js";
import "./camera.js";
import "./live.js";
import { $, say } from "./dom.js";
import { chooseLanguage, language, onLanguage, startLanguage } from "./language.js";
import { loadModels } from "./models.js";

const OTHER = { en: ["zh-CN", "中文"], "zh-CN": ["en", "English"] };

function showSwitch() {
  const [code, name] = OTHER[language()];
  $("language").lang = code;
  say($("language"), name);
}

$("language").addEventListener("click", () => chooseLanguage(OTHER[language()][0]));
onLanguage(showSwitch);
startLanguage();
loadModels();
