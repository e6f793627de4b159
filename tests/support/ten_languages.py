"""A few original sentences in ten languages, and documents made of them."""

from __future__ import annotations

import random

SENTENCES = {
    "zh": [
        "早上的市场里挤满了买菜的人。",
        "她把旧信放进木盒，然后关上了灯。",
        "这条河在春天涨水，夏天又变得很浅。",
        "孩子们在学校后面种了三棵苹果树。",
        "火车晚点了二十分钟，可是没有人抱怨。",
        "他问：“图书馆几点开门？”",
    ],
    "ja": [
        "朝の市場は野菜を買う人でいっぱいだった。",
        "彼女は古い手紙を木の箱にしまい、明かりを消した。",
        "この川は春に水が増え、夏にはまた浅くなる。",
        "子どもたちは学校の裏にりんごの木を三本植えた。",
        "電車は二十分遅れたが、だれも文句を言わなかった。",
        "「図書館は何時に開きますか」とかれは聞いた。",
    ],
    "ko": [
        "아침 시장은 채소를 사는 사람들로 가득했다.",
        "그녀는 오래된 편지를 나무 상자에 넣고 불을 껐다.",
        "이 강은 봄에 물이 불어나고 여름에는 다시 얕아진다.",
        "아이들은 학교 뒤에 사과나무 세 그루를 심었다.",
        "기차가 이십 분 늦었지만 아무도 불평하지 않았다.",
        "그는 도서관이 몇 시에 여는지 물었다.",
    ],
    "th": [
        "ตลาดตอนเช้าเต็มไปด้วยคนซื้อผัก",
        "เธอเก็บจดหมายเก่าไว้ในกล่องไม้ แล้วปิดไฟ",
        "แม่น้ำสายนี้น้ำขึ้นในฤดูฝน และตื้นในฤดูร้อน",
        "เด็ก ๆ ปลูกต้นแอปเปิลสามต้นหลังโรงเรียน",
        "รถไฟมาช้ายี่สิบนาที แต่ไม่มีใครบ่น",
        "เขาถามว่าห้องสมุดเปิดกี่โมง",
    ],
    "km": [
        "ផ្សារពេលព្រឹកពោរពេញដោយអ្នកទិញបន្លែ។",
        "នាងដាក់សំបុត្រចាស់ក្នុងប្រអប់ឈើ ហើយបិទភ្លើង។",
        "ទន្លេនេះឡើងទឹកនៅរដូវវស្សា ហើយរាក់វិញនៅរដូវប្រាំង។",
        "ក្មេងៗដាំដើមប៉ោមបីដើមនៅក្រោយសាលារៀន។",
        "រថភ្លើងយឺតម្ភៃនាទី ប៉ុន្តែគ្មាននរណារអ៊ូរទាំទេ។",
        "គាត់សួរថាបណ្ណាល័យបើកនៅម៉ោងប៉ុន្មាន។",
    ],
    "hi": [
        "सुबह का बाज़ार सब्ज़ी ख़रीदने वालों से भरा था।",
        "उसने पुरानी चिट्ठियाँ लकड़ी के डिब्बे में रखीं और बत्ती बुझा दी।",
        "यह नदी वसंत में चढ़ती है और गर्मी में फिर उथली हो जाती है।",
        "बच्चों ने स्कूल के पीछे सेब के तीन पेड़ लगाए।",
        "रेलगाड़ी बीस मिनट देर से आई, पर किसी ने शिकायत नहीं की।",
        "उसने पूछा कि पुस्तकालय कितने बजे खुलता है।",
    ],
    "ar": [
        "كان سوق الصباح مليئا بمن يشترون الخضار.",
        "وضعت الرسائل القديمة في صندوق خشبي ثم أطفأت الضوء.",
        "يرتفع ماء هذا النهر في الربيع ويعود ضحلا في الصيف.",
        "زرع الأطفال ثلاث شجرات تفاح خلف المدرسة.",
        "تأخر القطار عشرين دقيقة، لكن أحدا لم يشتك.",
        "سأل متى تفتح المكتبة أبوابها؟",
    ],
    "he": [
        "שוק הבוקר היה מלא באנשים שקונים ירקות.",
        "היא שמה את המכתבים הישנים בקופסת עץ וכיבתה את האור.",
        "הנהר הזה עולה באביב ונעשה שוב רדוד בקיץ.",
        "הילדים נטעו שלושה עצי תפוח מאחורי בית הספר.",
        "הרכבת איחרה בעשרים דקות, אבל איש לא התלונן.",
        "הוא שאל באיזו שעה נפתחת הספרייה.",
    ],
    "tr": [
        "Sabah pazarı sebze alan insanlarla doluydu.",
        "Eski mektupları tahta kutuya koydu ve ışığı söndürdü.",
        "Bu ırmak ilkbaharda yükselir, yazın yine sığlaşır.",
        "Çocuklar okulun arkasına üç elma ağacı dikti.",
        "Tren yirmi dakika gecikti ama kimse şikâyet etmedi.",
        "Kütüphanenin saat kaçta açıldığını sordu.",
    ],
    "de": [
        "Der Markt am Morgen war voller Leute, die Gemüse kauften.",
        "Sie legte die alten Briefe in eine Holzkiste und löschte das Licht.",
        "Dieser Fluss steigt im Frühling und wird im Sommer wieder seicht.",
        "Die Kinder pflanzten drei Apfelbäume hinter der Schule.",
        "Der Zug hatte zwanzig Minuten Verspätung, aber niemand beschwerte sich.",
        "Er fragte, wann die Bücherei öffnet: „Schon um acht?“",
    ],
}
_WITHOUT_BLANKS = ("zh", "ja")


def made_documents(language: str, count: int, seed: int = 1) -> list[str]:
    """Return documents in two paragraphs; sentences of Chinese and Japanese follow one another without a blank."""
    draw, documents = random.Random(f"{language} {seed}"), []
    blank = "" if language in _WITHOUT_BLANKS else " "
    for number in range(count):
        sentences = draw.choices(SENTENCES[language], k=draw.randint(5, 9))
        half = len(sentences) // 2
        first = [f"{number + 1} {sentences[0]}", *sentences[1:half]]  # so that no two documents are the same
        documents.append(blank.join(first) + "\n" + blank.join(sentences[half:]))
    return documents
