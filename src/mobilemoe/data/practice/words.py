"""Names and things that made-up conversations are about."""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


NAMES = _listed(
    "Ana,Ben,Carla,David,Ella,Farid,Grace,Hugo,Ines,Jonas,Kira,Leo,Mina,Noah,Olga,Paul,Rosa,Sam,Tara,Uma,Victor,Wanda,"
    "Yusuf,Zoe,Amir,Bella,Chen,Dora,Emil,Fiona,George,Hana,Ivan,Julia,Karl,Lena,Marta,Nils,Omar,Petra"
)
PLACES = _listed(
    "Lisbon,Oslo,Kyoto,Lima,Cairo,Bergen,Quito,Dublin,Perth,Porto,Naples,Riga,Tunis,Accra,Hanoi,Lyon,Leeds,Bonn,Turin,"
    "Malmo,Split,Graz,Basel,Nairobi,Santiago,Delhi,Osaka,Boston,Denver,Austin"
)
THINGS = _listed(
    "apples,pears,books,pens,coins,stamps,cups,eggs,cards,stones,shells,plums,tickets,keys,nuts,buttons,lemons,marbles,"
    "candles,flowers,boxes,letters,oranges,cookies"
)
WORK = _listed(
    "a teacher,a nurse,a baker,a carpenter,a painter,a farmer,a pilot,a doctor,a gardener,a lawyer,a cook,a driver,"
    "a librarian,a musician,an engineer,a tailor,a sailor,a clerk"
)
FOODS = _listed(
    "soup,rice,bread and cheese,pancakes,apple pie,fish,noodles,potatoes,beans,mushrooms,tomatoes,dumplings"
)
ANIMALS = _listed("cat,dog,horse,parrot,rabbit,goat,hamster,turtle,pony,duck,canary,donkey")
PETS = _listed("Luna,Rex,Milo,Nala,Toby,Coco,Simba,Lucky,Daisy,Oscar,Pepper,Smoky,Hazel,Felix,Bruno,Lola")
COLOURS = _listed("red,blue,green,white,black,brown,yellow,grey,orange,purple")
PLAYED = _listed("tennis,chess,football,the piano,the violin,the drums,cards,hockey,the flute")
HOUSES = _listed("bakery,library,museum,school,market,harbour,station,theatre,bank,hotel,hospital,garden")
DAYS = _listed("Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday")
MONTHS = _listed("January,February,March,April,May,June,July,August,September,October,November,December")
GREETINGS = _listed("Hello,Hi,Hello!,hi,hey,Hi there,Good morning,Good evening,hello nano,Hey!")
THANKS = _listed("Thanks!,thank you,Thank you very much.,thx,Great!,ok thanks,Perfect.")
GOODBYES = _listed("Bye,Goodbye!,bye bye,See you later,That is all.")
